// Mercurius on Fastify, with its compiler from the first call on.
import Fastify from 'fastify'
import mercurius from 'mercurius'
import { port, serve } from './processes.js'
import { resolvers, typeDefs } from './schema.js'

serve(async () => {
  const app = Fastify({ logger: false })
  app.register(mercurius, { schema: typeDefs, resolvers, jit: 1 })
  await app.listen({ port, host: '127.0.0.1' })
})
