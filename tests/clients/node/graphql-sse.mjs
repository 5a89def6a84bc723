// graphql-sse: subscriptions as server-sent events, each a request of its own.
import { createClient } from "graphql-sse";
import { HEADERS, URL, WATCH, fetched, followed, story, watched } from "./story.mjs";

const client = createClient({ url: URL, headers: HEADERS, retryAttempts: 0 });
const nobody = createClient({ url: URL, retryAttempts: 0 });
const ask = async (query, variables, asked = client) => {
  const answers = asked.iterate({ query, variables });
  const { value } = await answers.next();
  if (value.errors) throw value.errors;
  return value.data;
};
const found = await story("sse", {
  ask,
  askNobody: (query, variables) => ask(query, variables, nobody),
  refusedAs: 401,
  codes: (error) => (error.response ? [error.response.status] : error.map(({ extensions }) => extensions.code)),
});
const messages = client.iterate({ query: WATCH, variables: { id: found.id } });
await watched(found, messages, fetched);
await messages.return();
await followed(found, (query, variables) => client.iterate({ query, variables }), fetched);
console.log("subscriptions as server-sent events");
