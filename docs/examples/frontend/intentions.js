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
// With these it never will, unless an attempt before has done it.
const NEVER = new Set(["BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED", "LIMIT_EXCEEDED", "NOT_KEPT"]);

// What was wanted and has no answer yet, by its key. Each is kept in the browser before it is sent first, and found
// again after a reload: so there is no moment at which it could be done twice, or be forgotten.
const pending = new Map();
// What the page does: `began`, `waits`, `ended`, `refused`, and `done` by kind.
let page;

/** Goes on with what an earlier visit has left, and with what another tab leaves. */
export function resume(shown) {
  page = shown;
  for (const name of Object.keys(localStorage).filter((name) => name.startsWith(`${KEPT}pending:`))) {
    alone(name, () => {
      const left = localStorage.getItem(name);
      return left && seeThrough(begin(JSON.parse(left)));
    });
  }
}

export function want(endpoint, kind, input, title) {
  const intention = { key: `page-${random()}`, kind, input, title, endpoint, at: Date.now() };
  const state = begin(intention);
  return alone(nameOf(intention), () => seeThrough(state));
}

const nameOf = ({ key }) => `${KEPT}pending:${key}`;

/** Of several tabs one at a time, where the browser can tell. */
function alone(name, work) {
  return navigator.locks ? navigator.locks.request(name, work) : work();
}

/** Before it is sent: what could be forgotten is not. */
function keep(intention, mark) {
  try {
    localStorage.setItem(nameOf(intention), JSON.stringify({ ...intention, mark }));
  } catch {
    throw new Problem("NOT_KEPT", "This browser cannot remember it now, so it is not sent.");
  }
  intention.mark = mark;
}

/** By what a token is told from others: a key is good for the name of one. Never the token itself. */
async function markOf(text) {
  if (!crypto.subtle) return "";
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest).slice(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Something may be otherwise now: a token, or the connection. */
export const tryAll = () => pending.forEach((state) => state.wake());

/** The segments of a user that are being changed. */
export function busy(user) {
  const inputs = [...pending.values()].map(({ intention }) => intention.input).filter(({ userId }) => userId === user);
  return new Set(inputs.flatMap(({ add = [], remove = [] }) => [...add, ...remove]));
}

// randomUUID is for pages of https and of this machine only.
function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function begin(intention) {
  const state = { intention, givenUp: false, meant: false, alarm: new AbortController() };
  state.wake = () => state.alarm.abort();
  // By a person.
  state.again = () => { state.meant = true; state.wake(); };
  state.giveUp = () => { state.givenUp = true; state.wake(); };
  pending.set(intention.key, state);
  page.began(state);
  return state;
}

async function seeThrough(state) {
  const { intention } = state;
  const payload = await untilKnown(state);
  localStorage.removeItem(nameOf(intention));
  pending.delete(intention.key);
  if (payload) page.done[intention.kind](payload, intention);
  page.ended(state);
}

/** The payload; null when it was refused or given up, which is told. */
async function untilKnown(state) {
  const { intention } = state, { key, kind, input, title, endpoint, at } = intention;
  // The token with which somebody wants it sent again.
  let agreed;
  for (let tries = 0; ; tries++) {
    if (state.givenUp) return page.refused(`${title}: given up. It is not known whether it happened.`);
    if (Date.now() - at > KEY_MS) return page.refused(`${title}: that was too long ago to be sent again safely.`);
    const given = token(endpoint), mark = await markOf(given), before = intention.mark;
    if (token(endpoint) !== given) continue;
    if (before !== undefined && before !== mark && agreed !== mark) {
      state.meant = false;
      page.waits(state, `${title}: it was sent with another token, and may have happened. "Try now" sends it with this one.`);
      await untilAgain(state, Infinity);
      if (state.meant) agreed = mark;
      continue;
    }
    try {
      keep(intention, mark);
      const [payload] = Object.values(await ask(endpoint, MUTATIONS[kind], { input, key }));
      const [error] = payload.userErrors;
      if (!error) return payload;
      throw new Problem(error.code, error.message, { refused: !PASSING.has(error.code) });
    } catch (problem) {
      const never = before === undefined && NEVER.has(problem.code);
      if (problem.refused || never) return page.refused(`${title}: ${problem.message}`);
      if (NOT_DONE.has(problem.code)) keep(intention, before);
      // A token that is not good, say, tells nothing of an attempt before: the key is kept until somebody sees to it.
      const wait = PASSING.has(problem.code) ? pause(tries, problem) : Infinity;
      const seconds = (wait / 1000).toFixed(1);
      const next = wait === Infinity ? "It waits for you." : `Trying again in ${seconds} s, with the same key.`;
      page.waits(state, `${title}: not known yet. ${problem.message} ${next}`);
      await untilAgain(state, wait);
    }
  }
}

/** At once, if it was woken while an attempt was open. */
async function untilAgain(state, wait) {
  await sleep(wait, state.alarm.signal);
  state.alarm = new AbortController();
}
