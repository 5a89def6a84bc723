// What every client does, in its own way: a segment, a user who is put into it, a retry, pages, and what goes wrong.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

export const { SEGMENTQL_URL: URL, SEGMENTQL_TOKEN: TOKEN } = process.env;
export const HEADERS = { Authorization: `Bearer ${TOKEN}` };
export const WEB_SOCKET = { url: URL.replace("http:", "ws:"), connectionParams: { authorization: `Bearer ${TOKEN}` } };
const SECONDS = 20;

// A client that warns of what it was told, or of how it is used, has not been served well.
const warnings = [];
console.warn = console.error = (...words) => warnings.push(words.join(" "));
process.on("exit", () => {
  if (warnings.length === 0) return;
  process.stderr.write(`${warnings.join("\n")}\n`);
  process.exitCode ||= 1;
});

const WRONG = "userErrors { code path }";
export const CREATE = `
  mutation Create($slug: String!, $key: String!) {
    createSegment(input: { slug: $slug }, idempotencyKey: $key) { replayed segment { id slug description } ${WRONG} }
  }`;
export const CHANGE = `
  mutation Change($input: ChangeUserSegmentsInput!, $key: String!) {
    changeUserSegments(input: $input, idempotencyKey: $key) {
      replayed added unchanged user { id segments { id slug } } ${WRONG}
    }
  }`;
export const FILL = `
  mutation Fill($input: AddUsersToSegmentInput!, $key: String!) {
    addUsersToSegment(input: $input, idempotencyKey: $key) { added ${WRONG} }
  }`;
export const USER = `
  query User($id: ID!) {
    user(id: $id) { id segments { id slug } history { nodes { slug action actor } } }
  }`;
export const MEMBERS = `
  query Members($slug: String!, $after: String) {
    segment(slug: $slug) {
      id members(first: 2, after: $after) { nodes { id } pageInfo { hasNextPage endCursor } }
    }
  }`;
export const WATCH = `
  subscription Watch($id: ID!) {
    userChanged(id: $id) { resync events { slug action } user { id segments { id slug } } }
  }`;
const EXPORT = `
  mutation Export($slug: String!, $key: String!) {
    exportMembers(input: { slug: $slug }, idempotencyKey: $key) { task { id } ${WRONG} }
  }`;
const FOLLOW = "subscription Follow($id: ID!) { taskUpdated(id: $id) { id status file { rows } } }";
export const WRONG_FIELD = "query Wrong { user(id: 7) { nickname } }";

export const key = () => randomUUID();
export const event = (slug) => ({ slug, action: "ADDED", actor: "clients" });

/** Five ids, in the order in which their segment tells them. */
export const members = (name) => [1, 2, 3, 4, 5].map((number) => `${name}-${number}`);

// `ask(text, variables)` answers with data, or throws; `codes(error)` says the codes of what was thrown. `refusedAs` is
// what a client without a token sees, and `plain` makes data of a client's own kind comparable.
export async function story(whose, options) {
  const { ask, askNobody, codes, refusedAs = "UNAUTHENTICATED", plain = (value) => value, quiet = false } = options;
  const name = `${whose}-${randomUUID()}`;
  const slug = `${name}-segment`;
  const { createSegment: created } = plain(await ask(CREATE, { slug, key: key() }));
  const segment = { id: created.segment.id, slug };
  assert.match(segment.id, /^\d+$/);
  assert.deepEqual(created, { replayed: false, segment: { ...segment, description: null }, userErrors: [] });
  // The user has the segment's id: a store that tells things apart by their ids alone would mix up the two.
  const { id } = segment;
  const variables = { input: { userId: id, add: [slug] }, key: key() };
  const outcome = { added: [slug], unchanged: [], user: { id, segments: [segment] }, userErrors: [] };
  for (const replayed of [false, true]) {
    const { changeUserSegments: changed } = plain(await ask(CHANGE, variables));
    assert.deepEqual(changed, { replayed, ...outcome });
  }
  const { user } = plain(await ask(USER, { id }));
  assert.deepEqual(user, { id, segments: [segment], history: { nodes: [event(slug)] } });
  await refusals(name, { ask, askNobody, codes, refusedAs, plain });
  await pages(name, { ask, plain });
  if (!quiet) console.log("a retry happens once\nrefusals by their codes\nthree pages");
  return { segment, id };
}

async function refusals(name, { ask, askNobody, codes, refusedAs, plain }) {
  const input = { userId: `${name}-user`, add: [`${name}-nowhere`] };
  const { changeUserSegments: refused } = plain(await ask(CHANGE, { input, key: key() }));
  const userErrors = [{ code: "SEGMENT_NOT_FOUND", path: ["input", "add", "0"] }];
  assert.deepEqual(refused, { replayed: false, added: [], unchanged: [], user: null, userErrors });
  assert.deepEqual(codes(await thrown(ask(WRONG_FIELD, {}))), ["GRAPHQL_VALIDATION_FAILED"]);
  assert.deepEqual(codes(await thrown(askNobody(USER, { id: "7" }))), [refusedAs]);
}

async function pages(name, { ask, plain }) {
  const slug = `${name}-pages`;
  await ask(CREATE, { slug, key: key() });
  const { addUsersToSegment: filled } = plain(await ask(FILL, { input: { slug, userIds: members(name) }, key: key() }));
  assert.deepEqual(filled, { added: 5, userErrors: [] });
  const found = [];
  for (let after = null, more = true; more; ) {
    const { nodes, pageInfo } = plain(await ask(MEMBERS, { slug, after })).segment.members;
    found.push(nodes.map((node) => node.id));
    ({ hasNextPage: more, endCursor: after } = pageInfo);
  }
  const [a, b, c, d, e] = members(name);
  assert.deepEqual(found, [[a, b], [c, d], [e]]);
}

/** The same without `__typename`, which caches ask for everywhere. */
export function untyped(value) {
  return JSON.parse(JSON.stringify(value, (name, found) => (name === "__typename" ? undefined : found)));
}

/** An async iterator of what is pushed. */
export function messages() {
  const waiting = [], pushed = [];
  return {
    push: (value) => (waiting.length ? waiting.shift()({ value }) : pushed.push(value)),
    next: () => (pushed.length ? Promise.resolve({ value: pushed.shift() }) : new Promise((take) => waiting.push(take))),
  };
}

/** What `subscribed` tells, an async iterator, while the user is put into the segment and out of it. */
export async function watched({ segment, id }, subscribed, change, plain = (value) => value) {
  const next = async () => {
    const { value } = await bounded(subscribed.next());
    assert.equal(value.errors, undefined);
    return plain(value.data).userChanged;
  };
  assert.deepEqual(await next(), { resync: true, events: [], user: { id, segments: [segment] } });
  for (const [action, list, segments] of [["REMOVED", "remove", []], ["ADDED", "add", [segment]]]) {
    await change(CHANGE, { input: { userId: id, [list]: [segment.slug] }, key: key() });
    const events = [{ slug: segment.slug, action }];
    assert.deepEqual(await next(), { resync: false, events, user: { id, segments } });
  }
}

/** What `subscribe(text, variables)` tells of an export, until that has ended. */
export async function followed({ segment: { slug } }, subscribe, change) {
  const { exportMembers: { task } } = await change(EXPORT, { slug, key: key() });
  const told = [];
  for (const all = subscribe(FOLLOW, { id: task.id }); ; ) {
    const { value, done } = await bounded(all.next());
    if (done) break;
    assert.equal(value.errors, undefined);
    told.push(value.data.taskUpdated);
  }
  assert.deepEqual(told.at(-1), { id: task.id, status: "SUCCEEDED", file: { rows: 1 } });
  assert.ok(told.slice(0, -1).every(({ status, file }) => ["QUEUED", "RUNNING"].includes(status) && file === null));
}

/** Asks by fetch alone, where a client is for subscriptions only. */
export async function fetched(query, variables, headers = HEADERS) {
  const response = await fetch(URL, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await response.json();
  if (errors) throw Object.assign(new Error(errors[0].message), { errors });
  return data;
}

/** A fetch that remembers what was sent by it, and what came back. */
export function remembering(...sent) {
  const fetcher = async (input, init = {}) => {
    const response = await fetch(input, init);
    sent.push({ method: init.method ?? "GET", url: String(input), body: init.body, headers: new Headers(init.headers),
                status: response.status, type: response.headers.get("content-type") });
    return response;
  };
  return { fetcher, sent };
}

export async function thrown(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new assert.AssertionError({ message: "Nothing was thrown." });
}

export function bounded(promise) {
  const late = new Promise((_, fail) => {
    setTimeout(() => fail(new Error(`Nothing came within ${SECONDS} s.`)), SECONDS * 1000).unref();
  });
  return Promise.race([promise, late]);
}

export async function until(holds) {
  for (const end = Date.now() + SECONDS * 1000; !(await holds()); ) {
    assert.ok(Date.now() < end, `It did not come to that within ${SECONDS} s.`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
