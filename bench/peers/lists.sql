-- The active memberships of some users as JSON: slug, since, until, and until in milliseconds for whoever has kept it.
SELECT user_id,
       json_agg(json_build_array(
           slug,
           to_char(added_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
           to_char(nullif(expires_at, 'infinity') AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
           floor(extract(epoch FROM nullif(expires_at, 'infinity')) * 1000)
       ) ORDER BY slug COLLATE "C")::text AS list
FROM memberships JOIN segments ON id = segment_id
WHERE user_id = ANY($1) AND expires_at > now() AND deleted_at IS NULL
GROUP BY user_id
