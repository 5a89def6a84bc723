// Asks a server everything that graphql-http's audits of GraphQL over HTTP ask: node audits.mjs URL
import { serverAudits } from 'graphql-http';

const [url] = process.argv.slice(2);
const failures = [];
let passed = 0;

// One after the other: a failure then has one request in the server's log.
for (const { id, name, fn } of serverAudits({ url, fetchFn: fetch })) {
  const result = await fn();
  if (result.status === 'ok') {
    passed += 1;
  } else {
    failures.push(`${id} ${name}: ${result.reason} (HTTP ${result.response.status})`);
  }
}

console.log(`${passed} of ${passed + failures.length} audits pass`);
for (const failure of failures) {
  console.log(failure);
}
process.exitCode = failures.length === 0 ? 0 : 1;
