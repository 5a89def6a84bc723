// Lists of users for the peers in Node: what is asked for at one instant is one MGET, and what is missing one SELECT.
import { readFileSync } from 'node:fs'
import { Redis } from 'ioredis'
import pg from 'pg'

const LISTS = readFileSync(new URL('../lists.sql', import.meta.url), 'utf8')
const TTL_SECONDS = 50
export const redis = new Redis(process.env.PEER_REDIS, { enableAutoPipelining: true })
// As many connections as SegmentQL has for queries, and for mutations.
const reading = new pg.Pool({ max: 6 })
export const writing = new pg.Pool({ max: 10 })
export const key = (id) => `peer:${id}`

export const cached = gathered(async (ids) => {
  const kept = await redis.mget(ids.map(key))
  const missing = ids.filter((_, place) => kept[place] === null)
  if (missing.length === 0) return kept.map(active)
  const found = await fetched(missing)
  for (const [id, text] of found) redis.set(key(id), text, 'EX', ttl())
  return kept.map((text, place) => active(text ?? found.get(ids[place])))
})

export const latest = gathered(async (ids) => {
  const found = await fetched(ids)
  return ids.map((id) => active(found.get(id)))
})

async function fetched (ids) {
  const { rows } = await reading.query({ name: 'lists', text: LISTS, values: [ids], rowMode: 'array' })
  const found = new Map(rows)
  for (const id of ids) if (!found.has(id)) found.set(id, '[]')
  return found
}

// Seconds, a tenth more or less: what was stored together does not end together.
const ttl = () => Math.round(TTL_SECONDS * (0.9 + Math.random() * 0.2))

function active (text) {
  const now = Date.now()
  const memberships = []
  for (const [slug, addedAt, expiresAt, until] of JSON.parse(text)) {
    if (until === null || until > now) memberships.push({ segment: { slug }, addedAt, expiresAt })
  }
  return memberships
}

// Of the same turn of the event loop, whichever requests they are of.
function gathered (read) {
  let waiting = null
  async function begin () {
    const these = waiting
    waiting = null
    try {
      const found = await read([...these.keys()])
      let place = 0
      for (const { resolve } of these.values()) resolve(found[place++])
    } catch (error) {
      for (const { reject } of these.values()) reject(error)
    }
  }
  return (id) => {
    if (waiting === null) {
      waiting = new Map()
      setImmediate(begin)
    }
    let one = waiting.get(id)
    if (one === undefined) {
      one = {}
      one.promise = new Promise((resolve, reject) => Object.assign(one, { resolve, reject }))
      waiting.set(id, one)
    }
    return one.promise
  }
}
