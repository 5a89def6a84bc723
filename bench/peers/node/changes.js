// SegmentQL's own statement for the change of one user, and plain ones for the addition of many.
import { createHash } from 'node:crypto'
import { key, redis, writing } from './store.js'

const CHANGE = 'SELECT change_user_segments_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS answer'
const CLAIM = "INSERT INTO operations (client, kind, idempotency_key, fingerprint, result) VALUES ('peer', $1, $2, $3, $4)"
const ADD = `
  WITH added AS (
    INSERT INTO memberships (user_id, segment_id, added_at)
    SELECT user_id, id, now() FROM unnest($1::text[]) AS user_id, segments
    WHERE slug = $2 AND deleted_at IS NULL ORDER BY user_id
    ON CONFLICT DO NOTHING RETURNING *
  ), recorded AS (
    INSERT INTO membership_events (user_id, segment_id, action, at, expires_at)
    SELECT user_id, segment_id, 'ADDED', added_at, expires_at FROM added
  )
  SELECT count(*)::integer AS added FROM added`

export async function changeUser (input, idempotencyKey) {
  const { userId, add = [], remove = [] } = input
  const values = [
    'peer', 'changeUserSegments', idempotencyKey, fingerprint(input), 0, userId, [...add, ...remove], add.length, null, null
  ]
  const { rows } = await writing.query({ name: 'change', text: CHANGE, values })
  const { outcome, replayed } = rows[0].answer
  await redis.unlink(key(userId))
  return { ...outcome, replayed, userErrors: [] }
}

export async function addUsers (input, idempotencyKey) {
  const { slug, userIds } = input
  const connection = await writing.connect()
  try {
    await connection.query('BEGIN')
    await connection.query(CLAIM, ['addUsersToSegment', idempotencyKey, fingerprint(input), '{}'])
    const { rows } = await connection.query(ADD, [userIds, slug])
    await connection.query('COMMIT')
    await redis.unlink(userIds.map(key))
    return { ...rows[0], replayed: false, userErrors: [] }
  } catch (error) {
    await connection.query('ROLLBACK')
    throw error
  } finally {
    connection.release()
  }
}

const fingerprint = (input) => createHash('sha256').update(JSON.stringify(input)).digest()
