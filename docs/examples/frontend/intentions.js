// Sees each mutation through to its answer: with one key, across lost connections and reloads, so that it happens once.

import { KEPT, PASSING, Problem, ask, pause, sleep } from "./service.js";

const ERRORS = "replayed userErrors { code message }";
const MUTATIONS = {
  change: `mutation ($input: ChangeUserSegmentsInput!, $key: String!) {
    changeUserSegments(input: $input, idempotencyKey: $key) { added updated removed unchanged ${ERRORS} } }`,
  report: `mutation ($input: GenerateReportInput!, $key: String!) {
    generateReport(input: $input, idempotencyKey: $key) { task { id } ${ERRORS} } }`,
};
// The service may forget a key after a day; then the same request is a new one.
const KEY_MS = 23 * 3_600_000;

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
  localStorage.setItem(`${KEPT}pending:${intention.key}`, JSON.stringify(intention));
  return carryOut(intention);
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
  const { key, kind, input, title, endpoint, at } = state.intention;
  for (let tries = 0; ; tries++) {
    if (state.givenUp) return page.refused(`${title}: given up. It is not known whether it happened.`);
    if (Date.now() - at > KEY_MS) return page.refused(`${title}: that was too long ago to be sent again safely.`);
    try {
      const [payload] = Object.values(await ask(endpoint, MUTATIONS[kind], { input, key }));
      const [error] = payload.userErrors;
      if (!error) return payload;
      throw new Problem(error.code, error.message, { refused: !PASSING.has(error.code) });
    } catch (problem) {
      if (problem.refused) return page.refused(`${title}: ${problem.message}`);
      // A token that is not good, say, tells nothing of an attempt before: the key is kept until somebody sees to it.
      const wait = PASSING.has(problem.code) ? pause(tries, problem) : Infinity;
      const seconds = (wait / 1000).toFixed(1);
      const next = wait === Infinity ? "It waits for you." : `Trying again in ${seconds} s, with the same key.`;
      page.waits(state, `${title}: not known yet. ${problem.message} ${next}`);
      const woken = new AbortController();
      state.again = () => woken.abort();
      if (!state.givenUp) await sleep(wait, woken.signal);
    }
  }
}
