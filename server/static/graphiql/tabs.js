// Tabs that are ready to run, one after the other on a new database: all that callers do.
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
  {
    query: `# 5. Add a list: up to 100 000 users, all or nothing.
# A user that is there twice counts once; of those who
# are in it already the expiry moves, if you give one.

mutation AddAList(
  $input: AddUsersToSegmentInput!, $key: String!
) {
  addUsersToSegment(input: $input, idempotencyKey: $key) {
    added
    updated
    unchanged
    replayed
    userErrors { code message path }
  }
}`,
    variables: `{
  "input": {
    "slug": "AVITO_DISCOUNT_50",
    "userIds": ["1001", "1002", "1003"],
    "ttlDays": 30
  },
  "key": "try-add-list-1"
}`,
  },
  {
    query: `# 6. Change many: each user in its own way, up to
# 10 000 changes in one transaction. One mistake, and
# nothing of it happens: \`path\` says where it is.

mutation ChangeMany(
  $input: ChangeMembershipsInput!, $key: String!
) {
  changeMemberships(input: $input, idempotencyKey: $key) {
    added
    updated
    removed
    unchanged
    replayed
    userErrors { code message path }
  }
}`,
    variables: `{
  "input": {
    "changes": [
      { "userId": "1001",
        "remove": ["AVITO_DISCOUNT_50"] },
      { "userId": "1004",
        "add": ["AVITO_DISCOUNT_50"] }
    ]
  },
  "key": "try-change-many-1"
}`,
  },
  {
    query: `# 7. List the members who were added, page by page.
# Next page: pass \`endCursor\` as the argument \`after\`.
# Counting stops at \`limit\`: \`exact\` tells.

query ListMembers($slug: String!, $first: Int!, $after: String) {
  segment(slug: $slug) {
    memberCount(limit: 1000) { value exact }
    members(first: $first, after: $after) {
      edges {
        node { id }
        membership { addedAt expiresAt }
      }
      pageInfo { hasNextPage endCursor }
    }
  }
}`,
    variables: `{
  "slug": "AVITO_DISCOUNT_50",
  "first": 2
}`,
  },
  {
    query: `# 8. Roll out: a quarter of all users, added by nobody.
# Raise the share, and who was in it stays.

mutation RollOut(
  $slug: String!, $input: UpdateSegmentInput!, $key: String!
) {
  updateSegment(
    slug: $slug, input: $input, idempotencyKey: $key
  ) {
    segment { slug rolloutPercent updatedAt }
    replayed
    userErrors { code message path }
  }
}`,
    variables: `{
  "slug": "AVITO_DISCOUNT_50",
  "input": { "rolloutPercent": 25 },
  "key": "try-roll-out-1"
}`,
  },
  {
    query: `# 9. List the segments whose slugs begin so.
# \`deleted: true\` lists those that are no more.

query ListSegments($prefix: String!) {
  segments(first: 20, filter: { slugPrefix: $prefix }) {
    nodes { slug description rolloutPercent createdAt }
    pageInfo { hasNextPage endCursor }
  }
}`,
    variables: `{
  "prefix": "AVITO_"
}`,
  },
  {
    query: `# 10. Start a report: every event of the period as CSV.
# It is made in the background: see the next tab.

mutation StartAReport(
  $input: GenerateReportInput!, $key: String!
) {
  generateReport(input: $input, idempotencyKey: $key) {
    task { id status pollAfterMs }
    replayed
    userErrors { code message path }
  }
}`,
    variables: `{
  "input": {
    "from": "2026-01-01T00:00:00Z",
    "segments": ["AVITO_DISCOUNT_50"]
  },
  "key": "try-report-1"
}`,
  },
  {
    query: `# 11. Poll the newest report until \`pollAfterMs\`, the
# time to wait before asking again, is null. Then open
# \`url\`: it is good for some minutes; ask for another.
# Who knows the id asks for \`task(id:)\`.

query PollTheReport {
  tasks(first: 1, kind: REPORT) {
    nodes {
      id
      status
      progress
      rowsDone
      pollAfterMs
      error
      file { url urlExpiresAt bytes rows sha256 }
    }
  }
}`,
    variables: "",
  },
  {
    query: `# 12. Watch a user: what is true now, then each change
# as it happens. Make one from another window, and
# press the button again to stop.

subscription WatchTheUser($user: ID!) {
  userChanged(id: $user) {
    resync
    events { action slug at actor }
    user { segments { slug } }
  }
}`,
    variables: `{
  "user": "1000"
}`,
  },
  {
    query: `# 13. Delete the segment: every membership ends at once,
# and members without one are history.
# The tabs before will do again, with other keys.

mutation DeleteSegment($slug: String!, $key: String!) {
  deleteSegment(slug: $slug, idempotencyKey: $key) {
    segment { slug deletedAt }
    replayed
    userErrors { code message path }
  }
}`,
    variables: `{
  "slug": "AVITO_DISCOUNT_50",
  "key": "try-delete-segment-1"
}`,
  },
];
