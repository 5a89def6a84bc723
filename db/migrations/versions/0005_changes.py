"""The change of one user as one statement."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# In READ COMMITTED each statement in here sees what was committed before it, and all of them are one transaction. It
# answers with facts only: an `outcome` and whether it is `replayed`, or why there is none; then nothing is left behind.
CHANGE_USER_SEGMENTS = """
    CREATE FUNCTION change_user_segments_1(
        asked_client text, asked_kind text, asked_key text, asked_fingerprint bytea, asked_attempt bigint,
        who text, slugs text[], adds integer, ttl_days integer, until timestamptz
    ) RETURNS jsonb LANGUAGE plpgsql VOLATILE
    -- Planned once in a session, by index whatever the tables were like then: a plan takes longer than what it plans.
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
    AS $$
    DECLARE
        operation bigint;
        recorded record;
        ids integer[];
        rolled_out integer[];
        at_instant timestamptz;
        to_add integer[];
        to_remove integer[];
        began integer[];
        moved integer[];
        ended integer[];
        excluded_from integer[];
        outcome jsonb;
    BEGIN
        LOOP
            INSERT INTO operations (client, kind, idempotency_key, fingerprint, attempt)
            VALUES (asked_client, asked_kind, asked_key, asked_fingerprint, asked_attempt)
            ON CONFLICT (client, idempotency_key) DO NOTHING
            RETURNING id INTO operation;
            EXIT WHEN operation IS NOT NULL;
            SELECT fingerprint, attempt, result INTO recorded
            FROM operations WHERE client = asked_client AND idempotency_key = asked_key;
            IF FOUND AND recorded.fingerprint <> asked_fingerprint THEN
                RETURN jsonb_build_object('reused', true);
            ELSIF FOUND THEN
                RETURN jsonb_build_object(
                    'outcome', recorded.result, 'replayed', recorded.attempt IS DISTINCT FROM asked_attempt
                );
            END IF;
            -- Given up meanwhile: then it is new.
        END LOOP;

        -- Whoever holds one may be waiting for a bulk change. Behind the user's lock the clock dates what happens to
        -- the user in order; the queues are those of db/segments.py.
        PERFORM set_config('lock_timeout', '8s', true),
                pg_advisory_xact_lock(hashtext('memberships'), hashtext(who));
        PERFORM pg_advisory_xact_lock_shared(hashtext('segments'), queue)
        FROM (SELECT DISTINCT hashtext(slug) & 63 AS queue FROM unnest(slugs) AS slug ORDER BY queue) AS queues;
        -- FOR SHARE, not FOR KEY SHARE: the latter would let an add slip in behind an acknowledged deletion.
        WITH live AS (
            SELECT slug, id, EXISTS (SELECT FROM rollout_changes WHERE segment_id = id) AS rolled_out
            FROM segments WHERE slug = ANY (slugs) AND deleted_at IS NULL ORDER BY id FOR SHARE
        ), held AS (
            SELECT jsonb_object_agg(live.slug, live.id) AS by_slug,
                   array_agg(live.id) FILTER (WHERE live.rolled_out) AS rolled_out
            FROM live
        )
        SELECT ARRAY(SELECT CAST(held.by_slug ->> asked.slug AS integer)
                     FROM unnest(slugs) WITH ORDINALITY AS asked (slug, position) ORDER BY asked.position),
               held.rolled_out
        INTO ids, rolled_out FROM held;
        IF array_position(ids, NULL) IS NOT NULL THEN
            PERFORM set_config('synchronous_commit', 'off', true);
            DELETE FROM operations WHERE id = operation;
            RETURN jsonb_build_object('unknown', (
                SELECT jsonb_agg(asked.slug) FROM unnest(slugs, ids) AS asked (slug, id) WHERE asked.id IS NULL
            ));
        END IF;

        -- A clock that was set back, or that of a new primary, may lag behind what the old one wrote.
        SELECT greatest(clock_timestamp(), max(later.at) + interval '1 microsecond') INTO at_instant
        FROM (
            SELECT at FROM membership_events WHERE user_id = who AND at >= now()
            UNION ALL
            SELECT excluded_at FROM exclusions WHERE user_id = who AND excluded_at >= now()
        ) AS later;
        IF until <= at_instant THEN
            PERFORM set_config('synchronous_commit', 'off', true);
            DELETE FROM operations WHERE id = operation;
            RETURN jsonb_build_object('past', true);
        END IF;
        until := coalesce(until, at_instant + ttl_days * interval '24 hours', 'infinity');

        to_add := ids[1 : adds];
        to_remove := ids[adds + 1 : cardinality(ids)];
        IF adds > 0 THEN
            -- No membership is without its event, and the unchanged ones are not written at all.
            WITH written AS (
                INSERT INTO memberships AS m (user_id, segment_id, added_at, expires_at)
                SELECT who, segment_id, at_instant, until FROM unnest(to_add) AS segment_id ORDER BY segment_id
                ON CONFLICT (user_id, segment_id) DO UPDATE
                SET added_at = CASE WHEN m.expires_at > at_instant THEN m.added_at ELSE excluded.added_at END,
                    expires_at = excluded.expires_at
                WHERE m.expires_at <= at_instant OR m.expires_at <> excluded.expires_at
                RETURNING new.segment_id, old.expires_at AS expired_at,
                          coalesce(old.expires_at > at_instant, false) AS was_member
            ), recorded AS (
                INSERT INTO membership_events (user_id, segment_id, action, at, expires_at, operation_id)
                SELECT who, segment_id, CAST('EXPIRED' AS membership_action), expired_at, NULL, NULL
                FROM written WHERE expired_at <= at_instant
                UNION ALL
                SELECT who, segment_id,
                       CAST(CASE WHEN was_member THEN 'EXPIRY_CHANGED' ELSE 'ADDED' END AS membership_action),
                       at_instant, until, operation
                FROM written
            )
            SELECT array_agg(segment_id) FILTER (WHERE NOT was_member),
                   array_agg(segment_id) FILTER (WHERE was_member)
            INTO began, moved FROM written;
        END IF;
        IF cardinality(to_remove) > 0 THEN
            WITH gone AS (
                DELETE FROM memberships
                WHERE user_id = who AND segment_id = ANY (to_remove) AND expires_at > at_instant
                RETURNING segment_id
            ), recorded AS (
                INSERT INTO membership_events (user_id, segment_id, action, at, operation_id)
                SELECT who, segment_id, 'REMOVED', at_instant, operation FROM gone
            )
            SELECT array_agg(segment_id) INTO ended FROM gone;
        END IF;
        IF rolled_out IS NOT NULL THEN
            UPDATE exclusions SET ended_at = at_instant
            WHERE user_id = who AND segment_id = ANY (to_add) AND segment_id = ANY (rolled_out)
              AND ended_at = 'infinity';
            -- Who was in by the percentage alone has left by this, and no other row tells of it.
            WITH written AS (
                INSERT INTO exclusions (user_id, segment_id, excluded_at, operation_id)
                SELECT who, segment_id, at_instant, operation FROM unnest(to_remove) AS segment_id
                WHERE segment_id = ANY (rolled_out) ORDER BY segment_id
                ON CONFLICT (user_id, segment_id) WHERE ended_at = 'infinity' DO NOTHING
                RETURNING segment_id
            )
            SELECT array_agg(s.id) INTO excluded_from
            FROM written JOIN segments AS s ON s.id = written.segment_id
            WHERE CAST(CAST('x' || left(md5(s.seed || ':' || who), 8) AS bit(32)) AS bigint) % 10000 < s.rollout
              AND NOT coalesce(s.id = ANY (ended), false);
        END IF;

        UPDATE operations SET result = (
            SELECT jsonb_build_object(
                'added', coalesce(jsonb_agg(slug ORDER BY position) FILTER (WHERE effect = 'added'), '[]'),
                'updated', coalesce(jsonb_agg(slug ORDER BY position) FILTER (WHERE effect = 'updated'), '[]'),
                'removed', coalesce(jsonb_agg(slug ORDER BY position) FILTER (WHERE effect = 'removed'), '[]'),
                'excluded', coalesce(jsonb_agg(slug ORDER BY position) FILTER (WHERE effect = 'excluded'), '[]'),
                'unchanged', coalesce(jsonb_agg(slug ORDER BY position) FILTER (WHERE effect = 'unchanged'), '[]')
            ) FROM (
                SELECT slug, position, CASE
                    WHEN id = ANY (began) THEN 'added' WHEN id = ANY (moved) THEN 'updated'
                    WHEN id = ANY (ended) THEN 'removed' WHEN id = ANY (excluded_from) THEN 'excluded'
                    ELSE 'unchanged' END AS effect
                FROM unnest(slugs, ids) WITH ORDINALITY AS asked (slug, id, position)
            ) AS effects
        ) WHERE id = operation RETURNING result INTO outcome;
        RETURN jsonb_build_object('outcome', outcome, 'replayed', false);
    END $$
"""


def upgrade() -> None:
    # Which of several attempts with one key was the one that took effect: whoever lost its answer knows it again.
    op.execute("ALTER TABLE operations ADD COLUMN attempt bigint")
    op.execute(CHANGE_USER_SEGMENTS)


def downgrade() -> None:
    op.execute("DROP FUNCTION change_user_segments_1")
    op.execute("ALTER TABLE operations DROP COLUMN attempt")
