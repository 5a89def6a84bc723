// The part of SegmentQL's contract that is measured, and how each of its fields gets its value.
import { addUsers, changeUser } from './changes.js'
import { cached, latest } from './store.js'

export const typeDefs = `
  scalar DateTime
  enum Freshness { CACHED LATEST }
  type Segment { slug: String! }
  type Membership { segment: Segment! addedAt: DateTime! expiresAt: DateTime }
  type User {
    id: ID!
    segments: [Segment!]!
    memberships(freshness: Freshness! = CACHED): [Membership!]!
    isIn(slug: String!): Boolean!
  }
  type Query {
    user(id: ID!): User!
    users(ids: [ID!]!): [User!]!
  }
  input ChangeUserSegmentsInput { userId: ID! add: [String!] remove: [String!] }
  input AddUsersToSegmentInput { slug: String! userIds: [ID!]! }
  type UserError { code: String! }
  type ChangeUserSegmentsPayload {
    replayed: Boolean!
    userErrors: [UserError!]!
    added: [String!]!
    removed: [String!]!
    unchanged: [String!]!
  }
  type BulkChangePayload { replayed: Boolean! userErrors: [UserError!]! added: Int! }
  type Mutation {
    changeUserSegments(input: ChangeUserSegmentsInput!, idempotencyKey: String!): ChangeUserSegmentsPayload!
    addUsersToSegment(input: AddUsersToSegmentInput!, idempotencyKey: String!): BulkChangePayload!
  }
`

export const resolvers = {
  Query: {
    user: (_, { id }) => ({ id }),
    users: (_, { ids }) => ids.map((id) => ({ id }))
  },
  User: {
    segments: async ({ id }) => (await cached(id)).map((membership) => membership.segment),
    memberships: ({ id }, { freshness }) => freshness === 'LATEST' ? latest(id) : cached(id),
    isIn: async ({ id }, { slug }) => (await cached(id)).some((membership) => membership.segment.slug === slug)
  },
  Mutation: {
    changeUserSegments: (_, { input, idempotencyKey }) => changeUser(input, idempotencyKey),
    addUsersToSegment: (_, { input, idempotencyKey }) => addUsers(input, idempotencyKey)
  }
}
