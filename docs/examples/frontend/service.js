// Asks the service: once, and says what came of it and how long to wait before the next attempt.

export const KEPT = "segmentql-example:";
// Either nothing happened or the key knows what did: the same request is sent again. Time mends nothing else.
export const PASSING = new Set([
  "OVERLOADED", "TIMEOUT", "RATE_LIMITED", "IDEMPOTENCY_IN_PROGRESS",
  "NO_ANSWER", "HTTP_429", "HTTP_500", "HTTP_502", "HTTP_503", "HTTP_504",
]);
const FIRST_WAIT_MS = 500, LONGEST_WAIT_MS = 30_000;
// Longer than the service takes for anything, so that its own answer comes first.
const TIMEOUT_MS = 60_000;
// The service sends something every quarter of a minute; a stream that is silent for so long is one that was cut.
const SILENT_MS = 45_000;

export class Problem extends Error {
  constructor(code, message, { retryAfterMs = 0, refused = false } = {}) {
    super(`${message} (${code})`);
    Object.assign(this, { code, retryAfterMs, refused });
  }
}

// For each endpoint its own, so that no token is ever shown to another.
export const token = (url) => sessionStorage.getItem(`${KEPT}token:${url}`) ?? "";

/** Takes it as it was pasted, with its scheme or without; false for what no header can carry. */
export function keepToken(url, given) {
  const text = given.trim().replace(/^Bearer\s+/i, "");
  if (/[^\x20-\x7e]/.test(text)) return false;
  sessionStorage.setItem(`${KEPT}token:${url}`, text);
  return true;
}

export function sent(url, query, variables, accept, signal) {
  return fetch(url, {
    method: "POST",
    headers: {
      Accept: accept,
      "Content-Type": "application/json",
      ...(token(url) && { Authorization: `Bearer ${token(url)}` }),
    },
    body: JSON.stringify({ query, variables }),
    signal,
  });
}

/** Asks once. Throws a Problem where there is no answer, or where it says what is wrong. */
export async function ask(url, query, variables) {
  let response, answer;
  try {
    const accept = "application/graphql-response+json, application/json";
    response = await sent(url, query, variables, accept, AbortSignal.timeout(TIMEOUT_MS));
    answer = await response.json();
  } catch {
    if (response && !response.ok) throw new Problem(`HTTP_${response.status}`, "There was no answer from the service.");
    throw new Problem("NO_ANSWER", "There was no answer.");
  }
  const [error] = answer.errors ?? [];
  if (error) {
    const seconds = Number(response.headers.get("Retry-After")) || 0;
    const retryAfterMs = Math.max(seconds * 1000, error.extensions?.retryAfterMs ?? 0);
    throw new Problem(error.extensions?.code ?? `HTTP_${response.status}`, error.message, { retryAfterMs });
  }
  return answer.data;
}

/** Not at the same moment as every other page, and not before we were told to. */
export function pause(tries, problem) {
  const wait = Math.min(FIRST_WAIT_MS * 2 ** tries, LONGEST_WAIT_MS);
  return Math.max(wait * (0.5 + Math.random() / 2), problem.retryAfterMs ?? 0);
}

/** Ends early when the signal is given. */
export function sleep(ms, signal) {
  if (signal?.aborted) return Promise.resolve();
  return new Promise((done) => {
    const ended = () => { clearTimeout(timer); signal?.removeEventListener("abort", ended); done(); };
    const timer = ms === Infinity ? undefined : setTimeout(ended, ms);
    signal?.addEventListener("abort", ended);
  });
}

/** Tells of changes for as long as the service does; false when it has none to tell here. */
export async function follow(url, query, variables, signal, told) {
  const response = await sent(url, query, variables, "text/event-stream", signal);
  if (!response.ok) return PASSING.has(`HTTP_${response.status}`);
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return false;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let text = ""; ; ) {
      const silence = setTimeout(() => reader.cancel(), SILENT_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done) return true;
      const events = (text + value).split(/\r?\n\r?\n/);
      text = events.pop();
      for (const event of events) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const answer = JSON.parse(lines.map((line) => line.slice(5)).join("\n").trim() || "{}");
        if (answer.errors) return PASSING.has(answer.errors[0].extensions?.code);
        if (answer.data && !signal.aborted) told(answer.data);
      }
    }
  } finally {
    // Whatever it was that ended it, nothing more is to come.
    reader.cancel().catch(() => {});
  }
}
