// Opens GraphiQL on this server, with tabs that are ready to run.
"use strict";

// A tab is named after its operation. The lines are short enough to stand beside the answer.
const TABS = [
  {
    query: `# 1. Create a segment: pink button or Ctrl-Enter.
# Run it again: the same key never acts twice, it
# gets the first answer, and \`replayed\` is true.
# With another key, \`userErrors\`: the slug is taken.

mutation CreateSegment(
  $input: CreateSegmentInput!, $key: String!
) {
  createSegment(input: $input, idempotencyKey: $key) {
    segment { id slug description createdAt }
    replayed
    userErrors { code message path }
  }
}`,
    variables: `{
  "input": {
    "slug": "AVITO_DISCOUNT_50",
    "description": "Half price on the first order"
  },
  "key": "try-create-segment-1"
}`,
  },
  {
    query: `# 2. Add a user: any id will do, there is no sign-up.
# In five days the membership ends by itself.
# With another key the expiry moves: see \`updated\`.

mutation AddUser(
  $input: ChangeUserSegmentsInput!, $key: String!
) {
  changeUserSegments(input: $input, idempotencyKey: $key) {
    added
    updated
    removed
    unchanged
    user { segments { slug } }
    replayed
    userErrors { code message path }
  }
}`,
    variables: `{
  "input": {
    "userId": "1000",
    "add": ["AVITO_DISCOUNT_50"],
    "ttlDays": 5
  },
  "key": "try-add-user-1"
}`,
  },
  {
    query: `# 3. Read it back: what services ask all day long.
# \`memberships\` tells since when and until when.
# A membership that has expired is never shown.

query ReadItBack($user: ID!, $slug: String!) {
  user(id: $user) {
    id
    segments { slug description }
    memberships {
      segment { slug }
      addedAt
      expiresAt
      source
    }
    isIn(slug: $slug)
  }
}`,
    variables: `{
  "user": "1000",
  "slug": "AVITO_DISCOUNT_50"
}`,
  },
  {
    query: `# 4. See the history: what happened, when, by whom.
# Every begin, move and end of a membership is here.
# Next page: pass \`endCursor\` as the argument \`after\`.

query SeeTheHistory($user: ID!) {
  user(id: $user) {
    history(first: 20) {
      nodes { action slug at expiresAt actor }
      pageInfo { hasNextPage endCursor }
    }
  }
}`,
    variables: `{
  "user": "1000"
}`,
  },
];

const HOW_TO_SHOW_A_TOKEN =
  'In GraphiQL: open "Headers", below the query, and write {"Authorization": "Bearer <token>"}. ' +
  "It is kept in this tab of the browser only, until that is closed or loaded again.";

async function fetcher({ query, variables, operationName }, { headers } = {}) {
  // GraphiQL takes 100 ms to learn the new name after a change of tab; until then it gives the previous tab's.
  const named = new RegExp(`\\b${operationName}\\b`).test(query) ? operationName : undefined;
  const response = await fetch(window.location.pathname, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      Accept: "application/graphql-response+json, application/json",
      ...headers,
    },
    body: JSON.stringify({ query, variables, operationName: named }),
  });
  const text = await response.text();
  try {
    const answer = JSON.parse(text);
    if (response.status === 401) answer.errors.push({ message: HOW_TO_SHOW_A_TOKEN });
    return answer;
  } catch {
    return { errors: [{ message: `The answer is not JSON: ${response.status} ${response.statusText} ${text}` }] };
  }
}

// A namespace, so that tabs of another GraphiQL on the same host and port stay there.
const storage = GraphiQL.createLocalStorage({ namespace: "segmentql" });

// A first visit. GraphiQL takes the first tab's variables from the storage only, never from the tab; and its own
// proportions would cut lines and variables off.
if (!storage.getItem("graphiql:tabState")) {
  storage.setItem("graphiql:variables", TABS[0].variables);
  storage.setItem("graphiql:editorFlex", "1.15");
  storage.setItem("graphiql:secondaryEditorFlex", "1.8");
}

const logo = React.createElement(
  GraphiQL.Logo,
  null,
  React.createElement(
    "span",
    { className: "segmentql-logo" },
    React.createElement("img", { src: "/graphiql/favicon.svg", alt: "", width: 20, height: 20 }),
    "SegmentQL",
  ),
);

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
    logo,
  ),
);
