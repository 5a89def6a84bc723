"""What the API talks about. The values are the records of db/ and resolvers/ with the same attributes."""

from datetime import datetime

import strawberry

from db.memberships import MembershipSource
from db.tables import MembershipAction, TaskKind, TaskStatus
from resolvers import members, tasks, users
from resolvers.errors import UserErrorCode
from resolvers.imports import ImportMode
from resolvers.users import Freshness
from resolvers.values import BigInt
from schema.costs import counting, listing, one_item, page
from schema.enums import enum
from schema.fields import described, resolved_by

# How many there are of one user nobody says beforehand.
SOME = 10

enum(
    Freshness,
    "Where an answer may come from. Both show every change that was acknowledged before the query was sent.",
    CACHED="From the cache where it has the answer: fast. While Redis is cut off from a process that writes, an answer "
    "may be up to a minute old.",
    LATEST="From PostgreSQL, whatever the cache holds: slower.",
)
enum(
    MembershipSource,
    "Why a user is in a segment.",
    EXPLICIT="The user was added.",
    ROLLOUT="The segment's percentage takes the user in.",
)
enum(
    MembershipAction,
    "What happened to a membership.",
    EXPIRED="It reached its expiry and ended.",
    SEGMENT_DELETED="Its segment was deleted, which ended it.",
    REMOVED="The user was removed, which ended it.",
    EXPIRY_CHANGED="It goes on, until another instant than before.",
    ADDED="It began.",
)
enum(
    UserErrorCode,
    "Why a mutation was refused.",
    INVALID="The argument at `path` breaks a rule that `message` states.",
    SEGMENT_EXISTS="A live segment has this slug.",
    SEGMENT_NOT_FOUND="No live segment has this slug. Each unknown slug has an error of its own.",
    CONFLICTING_CHANGE="The same user is to be added to a segment and removed from it, or to be added until two "
    "different instants.",
    TOO_MANY_ITEMS="The list is longer than the limit that `message` states.",
    TASK_NOT_FOUND="You have no task of this id.",
    NOT_CANCELABLE="The task has ended already, or is one that cannot be called off.",
    IDEMPOTENCY_KEY_INVALID="The key is not 8 to 128 printable ASCII characters.",
    IDEMPOTENCY_KEY_REUSED="The key was used before, with other arguments or for another mutation.",
    IDEMPOTENCY_IN_PROGRESS="A mutation with this key is still at work; ask again with the same key.",
)
enum(
    TaskKind,
    "What a background task does.",
    REPORT="Writes membership history into a CSV file.",
    IMPORT="Adds, removes or replaces members of a segment, as a CSV file says.",
    EXPORT="Writes the members of a segment into a CSV file.",
    SEGMENT_CLEANUP="Moves the memberships of a deleted segment into history; answers leave them out already.",
)
enum(
    ImportMode,
    "What an import does with the users of its file.",
    ADD="They become members; of members the expiry moves.",
    REMOVE="They are members no longer. Expiries in the file have no effect.",
    REPLACE="They become the members, and everybody else who was added is one no longer, all in one transaction.",
)
enum(
    TaskStatus,
    "How far a background task has come.",
    QUEUED="It waits for a worker.",
    RUNNING="A worker is at it.",
    SUCCEEDED="It is done.",
    FAILED="It was given up; `error` says why.",
    CANCELED="It was called off.",
)


@strawberry.type(description="A named group of users.")
class Segment:
    id: strawberry.ID = described("Never reused: a segment created again under the same slug has another id.")
    slug: str = described("The name that callers use. Case matters.")
    description: str | None = described("For people: what the segment is for.")
    rollout_percent: float | None = described(
        "Share of all users that are members without being added, 0 to 100, two decimals. Null: no rollout."
    )
    created_at: datetime = described("When it was created.")
    updated_at: datetime = described("When it was created, last changed, or deleted.")
    deleted_at: datetime | None = described("When it was deleted and all its memberships ended; null while it is live.")
    member_count: "MemberCount" = resolved_by(
        members.member_count, "Explicit members active now, counted exactly up to `limit`.", cost=counting("limit")
    )
    members: "SegmentMemberConnection" = resolved_by(
        members.list_members,
        "Explicit members active now, in the order of their ids; whom a rollout takes in nobody knows.",
        cost=page("first"),
    )


@strawberry.type(description="A user's membership of a segment, now or as of the instant that was asked about.")
class Membership:
    segment: Segment = described("What the user is in, as the segment is now: it may have been deleted since.")
    added_at: datetime = described(
        "When the membership began; by a rollout, since when its percentage has included the user without a break, "
        "whether or not the user was added by hand or kept out meanwhile. Where history is kept for some months and "
        "has lost the beginning of what ended since: when these months begin.",
        instant="added",
    )
    expires_at: datetime | None = described(
        "When it ends by itself: the first instant outside. Null: it does not, or kept history has lost the expiry.",
        instant="expires",
    )
    source: MembershipSource = described("Why the user is in the segment.")


@strawberry.type(description="The beginning, the end, or another change of a membership.")
class MembershipEvent:
    user_id: strawberry.ID = described("Whose membership.")
    slug: str = described("Of which segment; the segment may have been deleted since.")
    action: MembershipAction = described(
        "What happened. A membership by a rollout is ADDED when the percentage takes the user in, and REMOVED when it "
        "does so no longer, or when the user is removed or is added by hand."
    )
    at: datetime = described(
        "When it happened: of an expiry the expiry, of a deletion the deletion, whenever the tidying came."
    )
    expires_at: datetime | None = described(
        "The membership's expiry from then on. Null: it does not end by itself, or this event ended it."
    )
    source: MembershipSource = described("Whether somebody had added the user, or the segment's percentage took it in.")
    actor: str | None = described(
        "Who caused it: the client of the mutation, `purge` where an expiry passed, or `rollout` where that has left "
        "the user to the segment's percentage."
    )


@strawberry.type(description="How many members there are, as far as they were counted.")
class MemberCount:
    value: BigInt = described("So many, at the least.")
    exact: bool = described("Whether there are no more: false when the limit was reached.")


@strawberry.type(description="Where a page lies in its list.")
class PageInfo:
    has_next_page: bool = described("Whether the list goes on behind this page.")
    has_previous_page: bool = described("Whether the page was asked for with `after`.")
    start_cursor: str | None = described("The first edge's cursor; null on an empty page.")
    end_cursor: str | None = described("The last edge's cursor, for the next page's `after`; null on an empty page.")


@strawberry.type(description="A segment's place in a list.")
class SegmentEdge:
    node: Segment = described("The segment.")
    cursor: str = described("Its place, for `after`. Opaque.")


@strawberry.type(description="A page of segments, ordered by slug.")
class SegmentConnection:
    edges: list[SegmentEdge] = described("The segments with their cursors.")
    nodes: list[Segment] = described("The segments alone.")
    page_info: PageInfo = described("Where the page lies.")


@strawberry.type(description="An event's place in a list.")
class MembershipEventEdge:
    node: MembershipEvent = described("The event.")
    cursor: str = described("Its place, for `after`. Opaque.")


@strawberry.type(description="A page of events, newest first.")
class MembershipEventConnection:
    edges: list[MembershipEventEdge] = described("The events with their cursors.")
    nodes: list[MembershipEvent] = described("The events alone.")
    page_info: PageInfo = described("Where the page lies.")


@strawberry.type(description="Someone who can be in segments. Every id is a user.")
class User:
    id: strawberry.ID = described("The id that was asked for, as a string.")
    segments: list[Segment] = resolved_by(
        users.user_segments,
        "The user's active segments now, ordered by slug: never one that has expired or was deleted.",
        cost=listing("only", SOME),
    )
    memberships: list[Membership] = resolved_by(
        users.user_memberships,
        "The same as `segments`, with when, until and why; or, with `at`, what it would have been then. Segments that "
        "were deleted since are among those.",
        cost=listing("only", SOME, asking="at"),
    )
    is_in: bool = resolved_by(users.is_in, "Whether the user is in the segment now.", cost=one_item())
    history: MembershipEventConnection = resolved_by(
        users.user_history,
        "Every begin, change of expiry and end of the user's memberships, newest first, those by rollouts among them: "
        "of each segment beginnings and ends alternate.",
        cost=page("first"),
    )


@strawberry.type(description="A member's place in a list.")
class SegmentMemberEdge:
    node: User = described("The member.")
    cursor: str = described("Its place, for `after`. Opaque.")
    membership: Membership = described("Since when, and until when.")


@strawberry.type(description="A page of members, in the order of their ids.")
class SegmentMemberConnection:
    edges: list[SegmentMemberEdge] = described("The members with their cursors.")
    nodes: list[User] = described("The members alone.")
    page_info: PageInfo = described("Where the page lies.")


@strawberry.type(description="What a task has made. Kept for a week, unless the operator set something else.")
class TaskFile:
    url: str = described(
        "Where to download it, for whoever has the link, until `urlExpiresAt`. Made anew each time it is asked for."
    )
    url_expires_at: datetime = described("The first instant at which the link is refused. Ask again for another.")
    bytes: BigInt = described("The file's size.")
    rows: BigInt = described("Its lines without the header.")
    sha256: str = described("The SHA-256 of its bytes, in 64 hexadecimal digits.")


@strawberry.type(
    description=(
        "What became of the rows of an import, so far while it runs: rows = added + updated + removed + unchanged + "
        "duplicate + invalid at its end. In a REPLACE the removed are members that are not in the file, and no part of "
        "that."
    )
)
class ImportResult:
    dry_run: bool = described("Whether nothing was changed, and all this is what an import at that moment would do.")
    rows: BigInt = described("Lines of the file that are read, without the header.")
    added: BigInt = described("Memberships that began.")
    updated: BigInt = described("Memberships whose expiry moved.")
    removed: BigInt = described("Memberships that ended.")
    unchanged: BigInt = described("Rows that asked for what already was so.")
    duplicate: BigInt = described(
        "Rows of a user that an earlier row has: that one counts. They are among the rejects."
    )
    invalid: BigInt = described("Rows that say nothing that could be done. They are the other rejects.")


@strawberry.type(description="Work that goes on in the background.")
class Task:
    id: strawberry.ID = resolved_by(tasks.task_id, "For polling.")
    kind: TaskKind = described("What it does.")
    status: TaskStatus = described("How far it has come.")
    progress: float | None = resolved_by(
        tasks.progress,
        "0 to 1 while running, when it can be known: of a cleanup and an import it can, of a report and an export not.",
    )
    rows_done: BigInt = described(
        "Events or members written, memberships moved, or lines of an import done with, so far; at most two seconds "
        "old."
    )
    created_at: datetime = described("When it was asked for.")
    started_at: datetime | None = described("When a worker took it first; null while it waits.")
    finished_at: datetime | None = described("When it ended, in whatever way; null until then.")
    poll_after_ms: int | None = resolved_by(
        tasks.poll_after_ms,
        "How long a poller should wait before it asks again, in milliseconds; null when the task has ended.",
    )
    file: TaskFile | None = resolved_by(
        tasks.file,
        "The result, once SUCCEEDED: of a report its events, of an export the members, as CSV with the header "
        "`user_id,added_at,expires_at`, and of an import its rejects, as CSV with the header `line,code,reason,row`. "
        "Null again when the file was removed after its time.",
    )
    upload_url: str | None = resolved_by(
        tasks.upload_url,
        "Where to PUT the CSV of an import, plain or as gzip, while it waits for it: at most a day. For whoever has "
        "the link, and good for as long as links to files are; made anew each time it is asked for.",
    )
    import_result: ImportResult | None = resolved_by(
        tasks.import_result, "What became of the rows of an import; null before it has begun, and of other tasks."
    )
    error: str | None = resolved_by(tasks.error, "Why it FAILED, in a sentence.")


@strawberry.type(description="News of a user who is watched.")
class UserChange:
    user: User = described("The user as of now: what `events` tell has taken effect.")
    events: list[MembershipEvent] = described(
        "What has happened since the message before, as `User.history` tells it, the oldest first; each event once. "
        "Events of one segment come in their order; what took long to be committed, as an import does, may come after "
        "later events of other segments. At most 1000; empty when `resync` is true."
    )
    resync: bool = described(
        "True in the first message, and whenever something may be missing between this one and the one before, what "
        "was told has been overtaken, or a rollout has moved: then `user` is to be read anew."
    )


@strawberry.type(description="A task's place in a list.")
class TaskEdge:
    node: Task = described("The task.")
    cursor: str = described("Its place, for `after`. Opaque.")


@strawberry.type(description="A page of tasks, the newest first.")
class TaskConnection:
    edges: list[TaskEdge] = described("The tasks with their cursors.")
    nodes: list[Task] = described("The tasks alone.")
    page_info: PageInfo = described("Where the page lies.")
