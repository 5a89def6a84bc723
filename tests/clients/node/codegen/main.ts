// GraphQL Code Generator: documents whose variables and answers have types, sent by graphql-request.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type { ResultOf } from "@graphql-typed-document-node/core";
import { ClientError, GraphQLClient } from "graphql-request";
import { graphql } from "./generated/gql.js";
import type { MembershipAction, UserErrorCode } from "./generated/graphql.js";

const { SEGMENTQL_URL: url = "", SEGMENTQL_TOKEN: token = "" } = process.env;
const client = new GraphQLClient(url, { headers: { Authorization: `Bearer ${token}` } });

const Create = graphql(`
  mutation Create($slug: String!, $key: String!) {
    createSegment(input: { slug: $slug }, idempotencyKey: $key) { segment { id slug createdAt } userErrors { code path } }
  }
`);
const Change = graphql(`
  mutation Change($input: ChangeUserSegmentsInput!, $key: String!) {
    changeUserSegments(input: $input, idempotencyKey: $key) { replayed added user { id } userErrors { code path } }
  }
`);
const Fill = graphql(`
  mutation Fill($input: AddUsersToSegmentInput!, $key: String!) {
    addUsersToSegment(input: $input, idempotencyKey: $key) { added }
  }
`);
const User = graphql(`
  query User($id: ID!) {
    user(id: $id) { segments { slug } memberships { source expiresAt } history { nodes { slug action expiresAt } } }
  }
`);
const Members = graphql(`
  query Members($slug: String!, $after: String) {
    segment(slug: $slug) {
      memberCount { value exact }
      members(first: 2, after: $after) { nodes { id } pageInfo { hasNextPage endCursor } }
    }
  }
`);

const name = `codegen-${randomUUID()}`;
const key = () => randomUUID();

const { createSegment: { segment, userErrors } } = await client.request(Create, { slug: name, key: key() });
assert.deepEqual([segment?.slug, userErrors], [name, []]);
assert.ok(!Number.isNaN(Date.parse(segment!.createdAt)));

const expiresAt = "2126-01-01T00:00:00.000000Z";
const change = { input: { userId: `${name}-0`, add: [name], expiresAt }, key: key() };
const expected = { added: [name], user: { id: `${name}-0` }, userErrors: [] };
for (const replayed of [false, true]) {
  assert.deepEqual((await client.request(Change, change)).changeUserSegments, { replayed, ...expected });
}
const { user } = await client.request(User, { id: `${name}-0` });
const action: MembershipAction = "ADDED";
assert.deepEqual(user, {
  segments: [{ slug: name }],
  memberships: [{ source: "EXPLICIT", expiresAt }],
  history: { nodes: [{ slug: name, action, expiresAt }] },
});
console.log("a retry happens once");

const unknown = { input: { userId: name, add: [`${name}-nowhere`] }, key: key() };
const { changeUserSegments: refused } = await client.request(Change, unknown);
const code: UserErrorCode = "SEGMENT_NOT_FOUND";
assert.deepEqual(refused.userErrors, [{ code, path: ["input", "add", "0"] }]);
assert.equal(await codeOf(new GraphQLClient(url).request(User, { id: name })), "401 UNAUTHENTICATED");
// What the types forbid is refused by the service as well.
// @ts-expect-error A variable is missing.
assert.equal(await codeOf(client.request(User, {})), "400 BAD_USER_INPUT");
console.log("refusals by their codes");

const userIds = [1, 2, 3, 4].map((number) => `${name}-${number}`);
const { addUsersToSegment: { added } } = await client.request(Fill, { input: { slug: name, userIds }, key: key() });
assert.equal(added, 4);
const pages: string[][] = [];
for (let after: string | null | undefined = null, more = true; more; ) {
  const found: ResultOf<typeof Members>["segment"] = (await client.request(Members, { slug: name, after })).segment;
  assert.deepEqual(found?.memberCount, { value: 5, exact: true });
  pages.push(found!.members.nodes.map(({ id }) => id));
  ({ hasNextPage: more, endCursor: after } = found!.members.pageInfo);
}
assert.deepEqual(pages, [[`${name}-0`, userIds[0]], [userIds[1], userIds[2]], [userIds[3]]]);
console.log("three pages");
console.log("tsc --strict");

async function codeOf(request: Promise<unknown>): Promise<string> {
  const error = await request.then(() => undefined, (thrown: unknown) => thrown);
  assert.ok(error instanceof ClientError, String(error));
  return `${error.response.status} ${error.response.errors?.[0]?.extensions["code"]}`;
}
