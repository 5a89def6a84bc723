// Opens GraphiQL on this server: with tabs that are ready to run, a field for the token, and links to share.
"use strict";

const TOKEN = "segmentql:token";
// Of a link that is opened or made: a browser takes more, chats and mail do not.
const MOST_CHARACTERS = 100_000;
// Browsers keep some megabytes for a page; the oldest go first.
const MOST_LINKED = 10;
const LINKED = "linked-";
const NO_TOKEN = "A token is needed. Paste one into the field at the top; it is kept until this tab is closed.";
const BAD_TOKEN = "The token at the top is not accepted: it is mistyped, has expired or was revoked.";
const NO_SCHEMA =
  "This server does not show its schema: there are no docs and no completion, and operations run all the same.";
// What a schema that is there sets right.
const WRONG = [NO_TOKEN, BAD_TOKEN, NO_SCHEMA];

const field = document.getElementById("token");
const hint = document.getElementById("hint");
// GraphiQL's own state, for what is outside of it.
let editors, schema;

function hinted(text) {
  hint.textContent = text;
}

field.value = sessionStorage.getItem(TOKEN) ?? "";
field.addEventListener("input", () => {
  // As it stands in examples of curl, it may be pasted with its scheme.
  const token = field.value.trim().replace(/^Bearer\s+/i, "");
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
});
field.addEventListener("change", () => schema?.introspect());

async function fetcher({ query, variables, operationName }, { headers } = {}) {
  // GraphiQL takes 100 ms to learn the new name after a change of tab; until then it gives the previous tab's.
  const named = new RegExp(`\\b${operationName}\\b`).test(query) ? operationName : undefined;
  const streamed = isSubscription(query, named);
  const stop = new AbortController();
  const sent = new Headers({
    "Content-Type": "application/json",
    Accept: streamed ? "text/event-stream" : "application/graphql-response+json, application/json",
  });
  const token = sessionStorage.getItem(TOKEN);
  if (token) sent.set("Authorization", `Bearer ${token}`);
  for (const [name, value] of Object.entries(headers ?? {})) sent.set(name, value);
  const response = await fetch(window.location.pathname, {
    method: "POST",
    headers: sent,
    body: JSON.stringify({ query, variables, operationName: named }),
    signal: stop.signal,
  });
  if (response.ok && response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    return stoppable(messages(response, stop.signal), stop);
  }
  return answer(response, operationName, sent.has("Authorization"));
}

function isSubscription(query, name) {
  try {
    return GraphiQL.GraphQL.getOperationAST(GraphiQL.GraphQL.parse(query), name)?.operation === "subscription";
  } catch {
    // The server says what is wrong with it.
    return false;
  }
}

async function answer(response, operationName, shown) {
  const text = await response.text();
  try {
    const parsed = JSON.parse(text);
    if (response.status === 401) {
      hinted(shown ? BAD_TOKEN : NO_TOKEN);
      parsed.errors?.push({ message: hint.textContent });
    } else if (operationName === "IntrospectionQuery") {
      if (!parsed.data) hinted(NO_SCHEMA);
      else if (WRONG.includes(hint.textContent)) hinted("");
    }
    return parsed;
  } catch {
    return { errors: [{ message: `The answer is not JSON: ${response.status} ${response.statusText} ${text}` }] };
  }
}

/** What a stream of server-sent events tells. */
async function* messages(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let text = "", part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (text + part.value).split(/\r?\n\r?\n/);
      text = events.pop();
      for (const event of events) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5)).join("\n").trim();
        if (data) yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** A generator that waits cannot be told to stop; its request can. */
function stoppable(generator, stop) {
  return {
    [Symbol.asyncIterator]() {
      return this;
    },
    next: () => generator.next(),
    return() {
      stop.abort();
      return Promise.resolve({ done: true, value: undefined });
    },
  };
}

// A namespace, so that tabs of another GraphiQL on the same host and port stay there.
const storage = GraphiQL.createLocalStorage({ namespace: "segmentql" });
const keep = storage.setItem;
// The history would remember headers with each query, for the next visitor of this browser.
storage.setItem = (name, value) => {
  const remembers = name === "graphiql:queries" || name === "graphiql:favorites";
  const without = (key, each) => (key === "headers" ? undefined : each);
  keep(name, remembers ? JSON.stringify(JSON.parse(value), without) : value);
};

// A first visit. GraphiQL takes the first tab's variables from the storage only, never from the tab; and its own
// proportions would cut lines and variables off.
if (!storage.getItem("graphiql:tabState")) {
  storage.setItem("graphiql:variables", TABS[0].variables);
  storage.setItem("graphiql:editorFlex", "1.15");
  storage.setItem("graphiql:secondaryEditorFlex", "1.8");
}
openLink();
// A link that is pasted over this page.
window.addEventListener("hashchange", () => window.location.reload());

/** Makes what the address has behind `#` a tab, or goes to the tab that has it. Nothing is run. */
function openLink() {
  const fragment = window.location.hash.slice(1);
  const given = new URLSearchParams(fragment);
  const [query, variables] = [given.get("query"), given.get("variables") ?? ""];
  if (!query || fragment.length > MOST_CHARACTERS) return;
  // Only once: the tab is kept, and may be edited.
  history.replaceState(null, "", window.location.pathname + window.location.search);
  const state = stateOfTabs();
  const isIt = (tab) => tab.query === query && (tab.variables ?? "") === variables;
  if (!state.tabs.some(isIt)) {
    const linked = state.tabs.filter(isLinked);
    const tooMany = linked.slice(0, Math.max(0, linked.length - MOST_LINKED + 1));
    const tab = tabOf({ query, variables, operationName: given.get("operationName") });
    state.tabs = [...state.tabs.filter((each) => !tooMany.includes(each)), { ...tab, id: LINKED + tab.id }];
  }
  state.activeTabIndex = state.tabs.findIndex(isIt);
  try {
    storage.setItem("graphiql:tabState", JSON.stringify(state));
    storage.setItem("graphiql:query", query);
    storage.setItem("graphiql:variables", variables);
  } catch {
    hinted("There is no room for another tab: close some, and open the link again.");
  }
}

function isLinked({ id }) {
  return String(id).startsWith(LINKED);
}

function stateOfTabs() {
  try {
    const state = JSON.parse(storage.getItem("graphiql:tabState"));
    if (Array.isArray(state?.tabs)) return state;
  } catch {
    // GraphiQL begins anew with what it cannot read, and so do we.
  }
  return { tabs: TABS.map(tabOf) };
}

/** As GraphiQL keeps it. */
function tabOf({ query, variables, operationName = null }) {
  const name = operationName ?? /\b(?:query|mutation|subscription)\s+(\w+)/.exec(query)?.[1];
  const id = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const nothingYet = { hash: null, headers: null, response: null };
  return { id, title: name ?? "<untitled>", query, variables, operationName, ...nothingYet };
}

document.getElementById("share").addEventListener("click", async () => {
  const link = linkTo(editors.queryEditor, editors.variableEditor);
  if (link.length > MOST_CHARACTERS) {
    hinted("This is too long for a link.");
    return;
  }
  try {
    await navigator.clipboard.writeText(link);
    hinted("A link to this tab was copied. It has the query and its variables, and no token.");
  } catch {
    // Without https a page may not write there.
    history.replaceState(null, "", link);
    hinted("The link to this tab is in the address bar. It has the query and its variables, and no token.");
  }
});

function linkTo(queryEditor, variableEditor) {
  const fragment = new URLSearchParams({ query: queryEditor.getValue(), variables: variableEditor.getValue() });
  if (queryEditor.operationName) fragment.set("operationName", queryEditor.operationName);
  return `${window.location.origin}${window.location.pathname}#${fragment}`;
}

function Inside() {
  editors = GraphiQL.React.useEditorContext({ nonNull: true });
  schema = GraphiQL.React.useSchemaContext({ nonNull: true });
  return null;
}

ReactDOM.createRoot(document.getElementById("graphiql")).render(
  React.createElement(
    GraphiQL,
    {
      fetcher,
      storage,
      defaultTabs: TABS,
      defaultQuery: "# Ctrl-Space completes, Ctrl-Enter runs.\n\n",
      defaultEditorToolsVisibility: "variables",
      // What a caller's token can do, the next visitor of this browser shall not.
      shouldPersistHeaders: false,
      showPersistHeadersSettings: false,
      plugins: [GraphiQLPluginExplorer.explorerPlugin()],
    },
    // In place of GraphiQL's name: ours is above.
    React.createElement(GraphiQL.Logo, null, React.createElement(Inside)),
  ),
);
