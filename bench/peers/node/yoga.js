// GraphQL Yoga on Node's own server, with Envelop's compiler.
import { createServer } from 'node:http'
import { useGraphQlJit } from '@envelop/graphql-jit'
import { createSchema, createYoga } from 'graphql-yoga'
import { port, serve } from './processes.js'
import { resolvers, typeDefs } from './schema.js'

serve(() => {
  const yoga = createYoga({
    schema: createSchema({ typeDefs, resolvers }),
    plugins: [useGraphQlJit()],
    logging: false,
    maskedErrors: false,
    graphiql: false
  })
  createServer(yoga).listen(port, '127.0.0.1')
})
