// Relay: programs made by its compiler, run without React; a store that pages are joined in, and mutations keep right.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { createClient } from "graphql-ws";
import relay from "relay-runtime";
import WebSocket from "ws";
import * as told from "../story.mjs";

const { HEADERS, URL, WEB_SOCKET, key } = told;
const made = createRequire(import.meta.url);
const artifact = (name) => made(`./generated/documents${name}.graphql.js`);
const socket = createClient({ ...WEB_SOCKET, webSocketImpl: WebSocket });

/** What a front end gives to Relay: how to ask, and how to be told. */
function environment(headers = HEADERS) {
  const network = relay.Network.create(
    async ({ text: query }, variables) => {
      const response = await fetch(URL, {
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers },
        body: JSON.stringify({ query, variables }),
      });
      return response.json();
    },
    ({ text: query }, variables) => relay.Observable.create((sink) => socket.subscribe({ query, variables }, sink)),
  );
  const store = new relay.Store(new relay.RecordSource());
  // By itself Relay takes an id for the only one of all types.
  return new relay.Environment({ network, store, getDataID: ({ id }, type) => id && `${type}:${id}` });
}

const home = environment(), strange = environment({});
const NAMES = new Map([
  [told.CREATE, "CreateMutation"], [told.CHANGE, "ChangeMutation"], [told.FILL, "FillMutation"],
  [told.USER, "UserQuery"], [told.MEMBERS, "PageQuery"],
]);

function ask(text, variables, store = home) {
  // Its compiler refuses a wrong document before any server does: this one is sent as it stands.
  if (text === told.WRONG_FIELD) return told.fetched(text, variables);
  const document = artifact(NAMES.get(text));
  if (document.params.operationKind === "query") {
    return relay.fetchQuery(store, document, variables, { fetchPolicy: "network-only" }).toPromise();
  }
  return new Promise((onCompleted, onError) => {
    relay.commitMutation(store, { mutation: document, variables, onCompleted, onError });
  });
}

const found = await told.story("relay", {
  ask,
  askNobody: (text, variables) => ask(text, variables, strange),
  codes: ({ errors, source }) => (errors ?? source.errors).map(({ extensions }) => extensions.code),
});
await updatesWhatIsShown(found);
await readsOn(found);
const messages = told.messages();
const { dispose } = relay.requestSubscription(home, {
  subscription: artifact("WatchSubscription"),
  variables: { id: found.id },
  onNext: (data) => messages.push({ data }),
});
await told.watched(found, messages, ask);
console.log("a subscription");
dispose();
await socket.dispose();

/** A reader of the store sees what a mutation answers. */
async function updatesWhatIsShown({ segment, id }) {
  const operation = relay.createOperationDescriptor(artifact("UserQuery"), { id });
  const held = home.retain(operation);
  const snapshot = home.lookup(operation.fragment);
  const shown = [snapshot.data.user.segments];
  const { dispose } = home.subscribe(snapshot, ({ data }) => shown.push(data.user.segments));
  for (const list of ["remove", "add"]) {
    await ask(told.CHANGE, { input: { userId: id, [list]: [segment.slug] }, key: key() });
  }
  assert.deepEqual(shown, [[segment], [], [segment]]);
  dispose();
  held.dispose();
  console.log("a mutation updates what is shown");
}

/** Fragments that can be fetched on, each a connection, read until there is no more. */
async function readsOn({ segment: { slug }, id }) {
  const userIds = told.members(id);
  await ask(told.FILL, { input: { slug, userIds }, key: key() });
  const members = await pages("members", "MembersQuery", { slug }, (data) => data.segment.members);
  const ids = (edges) => edges.map(({ node }) => node.id);
  const all = [id, ...userIds].sort();
  assert.deepEqual(members.map(ids), [all.slice(0, 2), all.slice(0, 4), all]);
  const history = await pages("history", "HistoryQuery", { id }, (data) => data.user.history);
  const actions = (edges) => edges.map(({ node }) => node.action);
  assert.deepEqual(history.map(actions), [["ADDED", "REMOVED"], ["ADDED", "REMOVED", "ADDED"]]);
  console.log("pages of members and of history by @connection");
}

/** The edges after each page, as `loadNext` of Relay's hooks would show them. */
async function pages(fragment, query, variables, connection) {
  const document = artifact(`_${fragment}`);
  const { paginationRequest, paginationMetadata } = relay.getPaginationMetadata(document, "pages");
  const operation = relay.createOperationDescriptor(artifact(query), variables);
  const held = home.retain(operation);
  await relay.fetchQuery(home, artifact(query), variables).toPromise();
  const reference = home.lookup(operation.fragment).data;
  const selector = relay.getSingularSelector(document, reference);
  const seen = [];
  for (let last; ; ) {
    last = connection(home.lookup(selector).data);
    seen.push(last.edges);
    if (!last.pageInfo.hasNextPage) break;
    const { endCursor } = last.pageInfo;
    const next = relay.getPaginationVariables("forward", 2, endCursor, variables, {}, paginationMetadata);
    await relay.fetchQuery(home, paginationRequest, next).toPromise();
  }
  held.dispose();
  return seen;
}
