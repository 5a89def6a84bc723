// PostGraphile over a view of the same tables. It has no cache of data: it asks PostgreSQL each time.
import { createServer } from 'node:http'
import { postgraphile } from 'postgraphile'
import { makePgService } from 'postgraphile/adaptors/pg'
import { grafserv } from 'postgraphile/grafserv/node'
import { PostGraphileAmberPreset } from 'postgraphile/presets/amber'
import { port, serve } from './processes.js'

const database = `postgres:///${process.env.PGDATABASE}?host=${process.env.PGHOST}&port=${process.env.PGPORT}&user=${process.env.PGUSER}`

serve(async () => {
  const server = createServer()
  const instance = postgraphile({
    extends: [PostGraphileAmberPreset],
    pgServices: [makePgService({ connectionString: database, schemas: ['peer'], poolConfig: { max: 6 } })],
    grafserv: { graphiql: false, watch: false },
    grafast: { explain: false }
  })
  await instance.createServ(grafserv).addTo(server)
  server.listen(port, '127.0.0.1')
})
