// graphql-request: the smallest client, over POST.
import assert from "node:assert/strict";
import { GraphQLClient } from "graphql-request";
import { HEADERS, URL, USER, story } from "./story.mjs";

const client = new GraphQLClient(URL, { headers: HEADERS });
const nobody = new GraphQLClient(URL);
const { segment, id } = await story("request", {
  ask: (text, variables) => client.request(text, variables),
  askNobody: async (text, variables) => {
    try {
      return await nobody.request(text, variables);
    } catch (error) {
      assert.equal(error.response.status, 401);
      throw error;
    }
  },
  codes: (error) => error.response.errors.map(({ extensions }) => extensions.code),
});
const { data, status } = await client.rawRequest(USER, { id });
assert.deepEqual([status, data.user.segments], [200, [segment]]);
console.log("the raw answer");
