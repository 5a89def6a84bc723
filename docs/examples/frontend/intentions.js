// Sees each mutation through to its answer: with one key, across lost connections and reloads, so that it happens once.

import { KEPT, PASSING, Problem, ask, pause, sleep, token } from "./service.js";

const ERRORS = "replayed userErrors { code message }";
const MUTATIONS = {
  change: `mutation ($input: ChangeUserSegmentsInput!, $key: String!) {
    changeUserSegments(input: $input, idempotencyKey: $key) { added updated removed unchanged ${ERRORS} } }`,
  report: `mutation ($input: GenerateReportInput!, $key: String!) {
    generateReport(input: $input, idempotencyKey: $key) { task { id } ${ERRORS} } }`,
};
// The service may forget a key after a day; then the same request is a new one.
const KEY_MS = 23 * 3_600_000;
// With these nothing has happened. After every other one, or none, it may have.
const NOT_DONE = new Set(["UNAUTHENTICATED", "FORBIDDEN", "RATE_LIMITED", "OVERLOADED", "HTTP_429"]);

// What was wanted and has no answer yet, by its key. Each is kept in the browser before it is sent first, and found
// again after a reload: so there is no moment at which it could be done twice, or be forgotten.
const pending = new Map();
// What the page does: `began`, `waits`, `ended`, `refused`, and `done` by kind.
let page;

/** Goes on with what an earlier visit has left. */
export function resume(shown) {
  page = shown;
  for (const name of Object.keys(localStorage).filter((name) => name.startsWith(`${KEPT}pending:`))) {
    carryOut(JSON.parse(localStorage.getItem(name)));
  }
}

export function want(endpoint, kind, input, title) {
  const intention = { key: `page-${random()}`, kind, input, title, endpoint, at: Date.now() };
  keep(intention);
  return carryOut(intention);
}

function keep(intention) {
  localStorage.setItem(`${KEPT}pending:${intention.key}`, JSON.stringify(intention));
}

/** By what a token is told from others: a key is good for the name of one. Never the token itself. */
async function markOf(text) {
  if (!crypto.subtle) return "";
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest).slice(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const tryAll = () => pending.forEach((state) => state.again());

/** The segments of a user that are being changed. */
export function busy(user) {
  const inputs = [...pending.values()].map(({ intention }) => intention.input).filter(({ userId }) => userId === user);
  return new Set(inputs.flatMap(({ add = [], remove = [] }) => [...add, ...remove]));
}

// randomUUID is for pages of https and of this machine only.
function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function carryOut(intention) {
  const state = { intention, givenUp: false, again: () => {} };
  state.giveUp = () => { state.givenUp = true; state.again(); };
  pending.set(intention.key, state);
  page.began(state);
  const payload = await untilKnown(state);
  localStorage.removeItem(`${KEPT}pending:${intention.key}`);
  pending.delete(intention.key);
  if (payload) page.done[intention.kind](payload, intention);
  page.ended(state);
}

/** The payload; null when it was refused or given up, which is told. */
async function untilKnown(state) {
  const { intention } = state, { key, kind, input, title, endpoint, at } = intention;
  let sure = false;
  for (let tries = 0; ; tries++) {
    if (state.givenUp) return page.refused(`${title}: given up. It is not known whether it happened.`);
    if (Date.now() - at > KEY_MS) return page.refused(`${title}: that was too long ago to be sent again safely.`);
    const mark = await markOf(token(endpoint)), before = intention.mark;
    if (before !== undefined && before !== mark && !sure) {
      page.waits(state, `${title}: it was sent with another token, and may have happened. "Try now" sends it with this one.`);
      await untilAgain(state, Infinity);
      sure = true;
      continue;
    }
    keep(Object.assign(intention, { mark }));
    try {
      const [payload] = Object.values(await ask(endpoint, MUTATIONS[kind], { input, key }));
      const [error] = payload.userErrors;
      if (!error) return payload;
      throw new Problem(error.code, error.message, { refused: !PASSING.has(error.code) });
    } catch (problem) {
      if (problem.refused) return page.refused(`${title}: ${problem.message}`);
      if (NOT_DONE.has(problem.code)) keep(Object.assign(intention, { mark: before }));
      // A token that is not good, say, tells nothing of an attempt before: the key is kept until somebody sees to it.
      const wait = PASSING.has(problem.code) ? pause(tries, problem) : Infinity;
      const seconds = (wait / 1000).toFixed(1);
      const next = wait === Infinity ? "It waits for you." : `Trying again in ${seconds} s, with the same key.`;
      page.waits(state, `${title}: not known yet. ${problem.message} ${next}`);
      await untilAgain(state, wait);
    }
  }
}

async function untilAgain(state, wait) {
  const woken = new AbortController();
  state.again = () => woken.abort();
  if (!state.givenUp) await sleep(wait, woken.signal);
}
