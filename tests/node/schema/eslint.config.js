// What schema.graphql has to keep to: the rules that graphql-eslint recommends for schemas, and those of Relay.
import { fileURLToPath } from "node:url";
import graphql from "@graphql-eslint/eslint-plugin";

const schema = fileURLToPath(new URL("../../../schema.graphql", import.meta.url));
const { "flat/schema-recommended": recommended, "flat/schema-relay": relay } = graphql.configs;

export default [
  {
    files: ["**/*.graphql"],
    plugins: { "@graphql-eslint": graphql },
    languageOptions: { parser: graphql.parser, parserOptions: { graphQLConfig: { schema } } },
    rules: {
      ...recommended.rules,
      ...relay.rules,
      "@graphql-eslint/strict-id-in-types": [
        "error",
        {
          exceptions: {
            // Parts of an answer. They stand for nothing that a cache could hold under an id of its own.
            suffixes: ["Payload", "Connection", "Edge", "Result", "Error", "Count", "Change"],
            types: [
              "PageInfo",
              // A user being in a segment: those two are what tells it from others.
              "Membership",
              // The past of a membership, which is read and never asked for one by one; its edge has a cursor.
              "MembershipEvent",
              // Of its task, which has the id: the link is a new one whenever it is asked for.
              "TaskFile",
            ],
          },
        },
      ],
      // `last` and `before` read a list from its end. Ours are read in one direction, and never from their end.
      "@graphql-eslint/relay-arguments": ["error", { includeBoth: false }],
      "@graphql-eslint/relay-edge-types": [
        "error",
        {
          withEdgeSuffix: true,
          // What is found by its own name, a slug or a user's id, needs no id that is one among those of all types.
          shouldImplementNode: false,
          // `nodes` beside `edges`, lists of bounded length, and the errors of a payload.
          listTypeCanWrapOnlyEdgeType: false,
        },
      ],
    },
  },
];
