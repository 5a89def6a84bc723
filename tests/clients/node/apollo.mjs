// Apollo Client: a normalised cache that mutations keep right, its errors, its pages, persisted queries, subscriptions.
import assert from "node:assert/strict";
import { createHash, randomUUID } from "node:crypto";
import { ApolloClient, ApolloLink, CombinedGraphQLErrors, HttpLink, InMemoryCache, gql } from "@apollo/client";
import { PersistedQueryLink } from "@apollo/client/link/persisted-queries";
import { GraphQLWsLink } from "@apollo/client/link/subscriptions";
import { relayStylePagination } from "@apollo/client/utilities";
import { OperationTypeNode } from "graphql";
import { createClient } from "graphql-ws";
import WebSocket from "ws";
import * as told from "./story.mjs";

const { HEADERS, URL, WEB_SOCKET, key, untyped } = told;

// A list is told apart by these arguments alone. A plain array would not do: Apollo Client takes a list that was asked
// for without any argument for another than one that was asked for with `freshness` only.
const by = (...names) => (args) => names.some((name) => args?.[name] != null) && names;
// Users and segments are kept once each, by their ids. What a user is in is replaced as a whole; pages are joined.
const cache = () => new InMemoryCache({
  typePolicies: {
    User: {
      fields: {
        segments: { keyArgs: by("only"), merge: false },
        memberships: { keyArgs: by("only", "at"), merge: false },
        history: relayStylePagination(by("from", "to")),
      },
    },
    Segment: { fields: { members: relayStylePagination() } },
  },
});
const { fetcher, sent } = told.remembering();
const http = (headers = HEADERS) => new HttpLink({ uri: URL, headers, fetch: fetcher });
const socket = createClient({ ...WEB_SOCKET, webSocketImpl: WebSocket });
const link = ApolloLink.split(
  ({ operationType }) => operationType === OperationTypeNode.SUBSCRIPTION, new GraphQLWsLink(socket), http(),
);
const client = new ApolloClient({ cache: cache(), link });
const nobody = new ApolloClient({ cache: cache(), link: http({}) });
const asked = new Map();
const document = (text) => asked.get(text) ?? asked.set(text, gql(text)).get(text);

async function ask(text, variables, apollo = client) {
  const isMutation = text.trimStart().startsWith("mutation");
  const { data } = isMutation
    ? await apollo.mutate({ mutation: document(text), variables })
    : await apollo.query({ query: document(text), variables, fetchPolicy: "network-only" });
  return data;
}

function codes(error) {
  assert.ok(CombinedGraphQLErrors.is(error), error);
  return error.errors.map(({ extensions }) => extensions.code);
}

const found = await told.story("apollo", {
  ask, codes, plain: untyped, askNobody: (text, variables) => ask(text, variables, nobody),
});
await updatesWhatIsShown(found);
await readsOn(found);
await persisted(found);
const messages = told.messages();
const news = client.subscribe({ query: document(told.WATCH), variables: { id: found.id } }).subscribe(messages.push);
await told.watched(found, messages, ask, untyped);
console.log("a subscription");
news.unsubscribe();
client.stop();
await socket.dispose();

/** Who watches a query sees what a mutation answers, without asking again. */
async function updatesWhatIsShown({ segment, id }) {
  const query = gql`query Shown($id: ID!) {
    user(id: $id) { id memberships { segment { id slug description } source } }
  }`;
  const shown = [];
  const watch = client.watchQuery({ query, variables: { id } }).subscribe(({ data, dataState }) => {
    if (dataState === "complete") shown.push(untyped(data.user.memberships));
  });
  const membership = (description) => ({ segment: { ...segment, description }, source: "EXPLICIT" });
  await told.until(() => shown.length === 1);
  const requests = sent.length;
  await client.mutate({
    mutation: gql`mutation Describe($slug: String!, $key: String!) {
      updateSegment(slug: $slug, input: { description: "Voice" }, idempotencyKey: $key) { segment { id description } }
    }`,
    variables: { slug: segment.slug, key: key() },
  });
  await told.until(() => shown.length === 2);
  await client.mutate({
    mutation: gql`mutation Leave($input: ChangeUserSegmentsInput!, $key: String!) {
      changeUserSegments(input: $input, idempotencyKey: $key) {
        user { id memberships { segment { id slug description } source } }
      }
    }`,
    variables: { input: { userId: id, remove: [segment.slug] }, key: key() },
  });
  await told.until(() => shown.length === 3);
  // Somebody else puts the user back: a fresh look somewhere is a fresh look everywhere.
  await told.fetched(told.CHANGE, { input: { userId: id, add: [segment.slug] }, key: key() });
  const latest = gql`query Latest($id: ID!) {
    user(id: $id) { id memberships(freshness: LATEST) { segment { id slug description } source } }
  }`;
  await client.query({ query: latest, variables: { id }, fetchPolicy: "network-only" });
  await told.until(() => shown.length === 4);
  assert.deepEqual(shown, [[membership(null)], [membership("Voice")], [], [membership("Voice")]]);
  assert.equal(sent.length, requests + 3);
  assert.equal(client.cache.extract()[`Segment:${segment.id}`].description, "Voice");
  watch.unsubscribe();
  console.log("a mutation updates what is shown");
}

/** `fetchMore` joins pages in the cache. */
async function readsOn({ segment: { slug }, id }) {
  const userIds = told.members(id);
  await ask(told.FILL, { input: { slug, userIds }, key: key() });
  const query = gql`query Pages($slug: String!, $after: String) {
    segment(slug: $slug) {
      id members(first: 4, after: $after) { edges { cursor node { id } } pageInfo { hasNextPage endCursor } }
    }
  }`;
  const { data } = await client.query({ query, variables: { slug } });
  const { hasNextPage, endCursor } = data.segment.members.pageInfo;
  assert.equal(hasNextPage, true);
  await client.watchQuery({ query, variables: { slug } }).fetchMore({ variables: { after: endCursor } });
  const { segment } = client.readQuery({ query, variables: { slug } });
  assert.deepEqual(segment.members.edges.map(({ node }) => node.id), [id, ...userIds].sort());
  assert.equal(segment.members.pageInfo.hasNextPage, false);
  console.log("fetchMore");
}

/** Who asks first is told that nobody knows the hash, and sends the text; soon the hash is enough, in any process. */
async function persisted({ segment, id }) {
  const sha256 = (text) => createHash("sha256").update(text).digest("hex");
  for (const [useGETForHashedQueries, method] of [[false, "POST"], [true, "GET"]]) {
    const name = `Persisted_${randomUUID().replaceAll("-", "")}`;
    const query = document(`query ${name}($id: ID!) { user(id: $id) { id segments { id slug } } }`);
    const asked = async () => {
      const requests = told.remembering();
      const by = new PersistedQueryLink({ sha256, useGETForHashedQueries });
      const link = by.concat(new HttpLink({ uri: URL, headers: HEADERS, fetch: requests.fetcher }));
      const apollo = new ApolloClient({ cache: cache(), link });
      const { data } = await apollo.query({ query, variables: { id } });
      assert.deepEqual(untyped(data.user), { id, segments: [segment] });
      apollo.stop();
      return requests.sent.map(({ method, status }) => `${method} ${status}`).join();
    };
    assert.equal(await asked(), `${method} 400,POST 200`);
    await told.until(async () => (await asked()) === `${method} 200`);
  }
  console.log("persisted queries by POST and GET");
}
