// As many server processes as PEER_PROCESSES says, on one port.
import cluster from 'node:cluster'

const processes = Number(process.env.PEER_PROCESSES ?? 1)
export const port = Number(process.env.PORT)

export function serve (start) {
  if (processes === 1 || cluster.isWorker) start()
  else for (let number = 0; number < processes; number++) cluster.fork()
}
