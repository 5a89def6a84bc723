// What relay-compiler makes programs of. It is read by the compiler, and not executed.
import { graphql } from "relay-runtime";

graphql`
  mutation documentsCreateMutation($slug: String!, $key: String!) {
    createSegment(input: { slug: $slug }, idempotencyKey: $key) { replayed segment { id slug description } userErrors { code path } }
  }
`;
graphql`
  mutation documentsChangeMutation($input: ChangeUserSegmentsInput!, $key: String!) {
    changeUserSegments(input: $input, idempotencyKey: $key) {
      replayed added unchanged user { id segments { id slug } } userErrors { code path }
    }
  }
`;
graphql`
  mutation documentsFillMutation($input: AddUsersToSegmentInput!, $key: String!) {
    addUsersToSegment(input: $input, idempotencyKey: $key) { added userErrors { code path } }
  }
`;
graphql`
  query documentsUserQuery($id: ID!) {
    user(id: $id) { id segments { id slug } history { nodes { slug action actor } } }
  }
`;
graphql`
  query documentsPageQuery($slug: String!, $after: String) {
    segment(slug: $slug) { id members(first: 2, after: $after) { nodes { id } pageInfo { hasNextPage endCursor } } }
  }
`;
graphql`
  subscription documentsWatchSubscription($id: ID!) {
    userChanged(id: $id) { resync events { slug action } user { id segments { id slug } } }
  }
`;
graphql`
  query documentsMembersQuery($slug: String!) {
    ...documents_members @arguments(slug: $slug)
  }
`;
graphql`
  fragment documents_members on Query
  @argumentDefinitions(slug: { type: "String!" }, count: { type: "Int", defaultValue: 2 }, cursor: { type: "String" })
  @refetchable(queryName: "documentsMembersPageQuery") {
    segment(slug: $slug) {
      members(first: $count, after: $cursor) @connection(key: "documents_members") { edges { node { id } } }
    }
  }
`;
graphql`
  query documentsHistoryQuery($id: ID!) {
    ...documents_history @arguments(id: $id)
  }
`;
graphql`
  fragment documents_history on Query
  @argumentDefinitions(id: { type: "ID!" }, count: { type: "Int", defaultValue: 2 }, cursor: { type: "String" })
  @refetchable(queryName: "documentsHistoryPageQuery") {
    user(id: $id) {
      history(first: $count, after: $cursor) @connection(key: "documents_history") { edges { node { slug action } } }
    }
  }
`;
