// urql: its document cache, POST and GET, its errors, persisted queries, subscriptions.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { Client, cacheExchange, fetchExchange, subscriptionExchange } from "@urql/core";
import { persistedExchange } from "@urql/exchange-persisted";
import { createClient } from "graphql-ws";
import WebSocket from "ws";
import * as told from "./story.mjs";

const { HEADERS, URL, WEB_SOCKET, key, untyped } = told;
// What it accepts for any operation: a stream last, which is no wish for one.
const ACCEPT =
  "application/graphql-response+json, application/graphql+json, application/json, text/event-stream, multipart/mixed";

const socket = createClient({ ...WEB_SOCKET, webSocketImpl: WebSocket });
const over = subscriptionExchange({
  forwardSubscription: ({ query, variables }) => ({
    subscribe: (sink) => ({ unsubscribe: socket.subscribe({ query, variables }, sink) }),
  }),
});

/** A client that remembers what it has sent. */
function made({ headers = HEADERS, exchanges = [cacheExchange, fetchExchange, over], ...options } = {}) {
  const { fetcher: fetch, sent } = told.remembering();
  const fetchOptions = { headers };
  const client = new Client({ url: URL, preferGetMethod: false, fetch, fetchOptions, exchanges, ...options });
  return { client, sent };
}

async function ask(text, variables, { client } = posting) {
  const isMutation = text.trimStart().startsWith("mutation");
  const context = { requestPolicy: "network-only" };
  const { data, error } = await (isMutation ? client.mutation(text, variables) : client.query(text, variables, context));
  if (error) throw error;
  return data;
}

const posting = made();
const nobody = made({ headers: {} });
const story = {
  plain: untyped,
  askNobody: (text, variables) => ask(text, variables, nobody),
  codes: (error) => error.graphQLErrors.map(({ extensions }) => extensions.code),
};
const found = await told.story("urql", { ask, ...story });
assert.equal(nobody.sent[0].status, 401);
assert.deepEqual(new Set(posting.sent.map(({ method }) => method)), new Set(["POST"]));
await shows(found);
await forced();
await persisted(found);
await watches(posting);
await socket.dispose();
// Without an exchange for subscriptions it asks for server-sent events by itself.
await watches(made({ exchanges: [fetchExchange], fetchSubscriptions: true }));
console.log("subscriptions over WebSocket and as server-sent events");

async function watches({ client }) {
  const messages = told.messages();
  const { unsubscribe } = client.subscription(told.WATCH, { id: found.id }).subscribe(messages.push);
  await told.watched(found, messages, ask, untyped);
  unsubscribe();
}

/** A second look is answered from memory; a mutation of what is shown has it asked for again. */
async function shows({ segment, id }) {
  const { client, sent } = made();
  const query = "query Shown($id: ID!) { user(id: $id) { id segments { id slug } } }";
  const shown = [];
  const { unsubscribe } = client.query(query, { id }).subscribe(({ data, stale }) => {
    const segments = untyped(data.user.segments);
    // Whoever else asks the same is told by the same source, so that an answer can come twice.
    if (!stale && !isDeepStrictEqual(segments, shown.at(-1))) shown.push(segments);
  });
  await told.until(() => shown.length === 1);
  assert.deepEqual(untyped((await client.query(query, { id })).data.user), { id, segments: [segment] });
  assert.equal(sent.length, 1);
  for (const list of ["remove", "add"]) {
    await client.mutation(told.CHANGE, { input: { userId: id, [list]: [segment.slug] }, key: key() });
    await told.until(() => shown.length === (list === "remove" ? 2 : 3));
  }
  unsubscribe();
  assert.deepEqual(shown, [[segment], [], [segment]]);
  assert.equal(sent.length, 5);
  console.log("a mutation renews what is shown");
}

/** Queries by GET, mutations by POST; what is accepted besides changes nothing. */
async function forced() {
  const getting = made({ preferGetMethod: "force" });
  await told.story("urql-get", { ...story, quiet: true, ask: (text, variables) => ask(text, variables, getting) });
  assert.deepEqual(new Set(getting.sent.map(({ method }) => method)), new Set(["GET", "POST"]));
  for (const { url, method, headers, type } of [...posting.sent, ...getting.sent]) {
    assert.equal(headers.get("accept"), ACCEPT);
    assert.match(type, /^application\/graphql-response\+json(;|$)/);
    assert.equal(method === "GET", url.includes("query="));
  }
  console.log("the same by GET");
}

/** Who asks first is told that nobody knows the hash, and sends the text; soon the hash is enough, in any process. */
async function persisted({ segment, id }) {
  for (const [preferGetForPersistedQueries, method] of [[false, "POST"], [true, "GET"]]) {
    const name = `Persisted_${randomUUID().replaceAll("-", "")}`;
    const query = `query ${name}($id: ID!) { user(id: $id) { id segments { id slug } } }`;
    const asked = async () => {
      const { client, sent } = made({ exchanges: [persistedExchange({ preferGetForPersistedQueries }), fetchExchange] });
      const { data, error } = await client.query(query, { id });
      assert.equal(error, undefined);
      assert.deepEqual(untyped(data.user), { id, segments: [segment] });
      return sent.map(({ method, status }) => `${method} ${status}`).join();
    };
    assert.equal(await asked(), `${method} 400,${method} 200`);
    await told.until(async () => (await asked()) === `${method} 200`);
  }
  console.log("persisted queries by POST and GET");
}
