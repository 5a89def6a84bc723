// Puts the users of a file into a segment, in chunks that happen once, however often this is cut off or run again.
//
// node batch.js URL SEGMENT FILE JOB [CHUNK]: the file has one user id on each line. JOB names the work and its day,
// such as `discount-2026-11-23`. Run again with the same JOB within a day, it changes nothing and prints the same
// totals.

import { readFile } from "node:fs/promises";

const ADD = `
  mutation ($input: AddUsersToSegmentInput!, $key: String!) {
    addUsersToSegment(input: $input, idempotencyKey: $key) {
      added updated unchanged replayed userErrors { code path message }
    }
  }`;
const COUNTS = ["added", "updated", "unchanged", "replayed"] as const;
// Users of one request. Each holds up the segment's other changes for as long as it takes.
const MOST = 50_000;
// Either nothing happened or the key knows what did. Whatever has another code is refused each time.
const PASSING = new Set([
  "OVERLOADED", "TIMEOUT", "RATE_LIMITED", "IDEMPOTENCY_IN_PROGRESS",
  "NO_ANSWER", "HTTP_429", "HTTP_500", "HTTP_502", "HTTP_503", "HTTP_504",
]);
// The waits between them are one to two minutes together: by then a database that fails over is back.
const ATTEMPTS = 10, FIRST_WAIT_MS = 500, LONGEST_WAIT_MS = 30_000;
// Longer than the service takes for anything, so that its own answer comes first.
const TIMEOUT_MS = 60_000;

interface Variables { input: { slug: string; userIds: string[] }; key: string }
interface Payload {
  added: number; updated: number; unchanged: number; replayed: boolean;
  userErrors: { code: string; path: string[]; message: string }[];
}
interface Answer {
  data?: { addUsersToSegment: Payload } | null;
  errors?: { message: string; extensions?: { code?: string } }[];
}
interface Outcome { payload?: Payload; wrong: { code: string; message: string }[]; retryAfter: number }

/** What became of a chunk, and what was wrong. */
async function ask(url: string, variables: Variables): Promise<Outcome> {
  let response: Response, text: string;
  try {
    response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ query: ADD, variables }),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await response.text();
  } catch (error) {
    const message = String(error instanceof Error ? (error.cause ?? error) : error);
    return { wrong: [{ code: "NO_ANSWER", message }], retryAfter: 0 };
  }
  let answer: Answer = {};
  try {
    answer = JSON.parse(text) as Answer;
  } catch { /* it is no GraphQL: something in between has answered */ }
  const payload = answer.data?.addUsersToSegment;
  const wrong = [
    ...(answer.errors ?? []).map((e) => ({ code: e.extensions?.code ?? "UNKNOWN", message: e.message })),
    ...(payload?.userErrors ?? []).map((e) => ({ code: e.code, message: `${e.path.join(".")}: ${e.message}` })),
  ];
  if (!payload && wrong.length === 0) wrong.push({ code: `HTTP_${response.status}`, message: response.statusText });
  return { ...(payload && { payload }), wrong, retryAfter: Number(response.headers.get("Retry-After")) || 0 };
}

/** What became of a chunk. Ends the program when it is refused, or there is no answer to be had. */
async function insist(url: string, variables: Variables): Promise<Payload> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const { payload, wrong, retryAfter } = await ask(url, variables);
    if (payload && wrong.length === 0) return payload;
    for (const { code, message } of wrong) console.error(code, message);
    if (!wrong.every(({ code }) => PASSING.has(code))) {
      fail(`Stopped at ${variables.key}: asking again would not help. The chunks before it are done.`);
    }
    if (attempt < ATTEMPTS - 1) {
      const wait = Math.min(FIRST_WAIT_MS * 2 ** attempt, LONGEST_WAIT_MS);
      // Not at the same moment as every other client, and not before we were told to.
      const milliseconds = Math.max(wait * (0.5 + Math.random() / 2), retryAfter * 1000);
      await new Promise((resolve) => setTimeout(resolve, milliseconds));
    }
  }
  return fail(`Given up at ${variables.key} after ${ATTEMPTS} attempts. Run this again with the same JOB.`);
}

function fail(message: string): never {
  console.error(message);
  process.exit(1);
}

const [url, slug, file, job, chunk = String(MOST)] = process.argv.slice(2);
const size = Number(chunk);
if (!url || !slug || !file || !job || !Number.isInteger(size) || size < 1 || size > MOST) {
  fail(`usage: node batch.js URL SEGMENT FILE JOB [CHUNK, from 1 to ${MOST}]`);
}
// Stops at what is not UTF-8, rather than add a user who is not meant.
const text = new TextDecoder("utf-8", { fatal: true }).decode(await readFile(file));
const ids = text.split(/\r?\n/).filter((id) => id !== "");
const totals = { chunks: 0, added: 0, updated: 0, unchanged: 0, replayed: 0 };
for (let start = 0; start < ids.length; start += size) {
  totals.chunks += 1;
  const userIds = ids.slice(start, start + size);
  const payload = await insist(url, { input: { slug, userIds }, key: `${job}/${totals.chunks}` });
  for (const count of COUNTS) totals[count] += Number(payload[count]);
}
console.log(JSON.stringify(totals));
