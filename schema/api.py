"""Everything callers can ask for."""

from collections.abc import Callable, Iterable
from datetime import datetime

import strawberry
from graphql import GraphQLError
from strawberry.extensions import SchemaExtension
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext
from strawberry.types import ExecutionContext

from db.tables import Scope
from resolvers import bulk, changes, imports, memberships, reports, segments, tasks, users
from resolvers.values import BigInt
from schema.costs import listing, of_points, one_statement, page, writing
from schema.fields import leave_defaults_of_null_unsaid, resolved_by, subscribed_by
from schema.payloads import BulkChangePayload, ChangeUserSegmentsPayload, SegmentPayload, TaskPayload
from schema.scalars import BIG_INT, DateTime
from schema.types import Segment, SegmentConnection, Task, TaskConnection, User, UserChange


@strawberry.type(description="What can be asked. Nothing here changes anything.")
class Query:
    user: User = resolved_by(
        users.user,
        "Every id is a user: users are not registered beforehand, and an id never seen has no segments.",
        Scope.READ,
    )
    users: list[User] = resolved_by(
        users.users, "Up to 100 users, answered in the order asked.", Scope.READ, cost=listing("ids")
    )
    segment: Segment | None = resolved_by(
        segments.segment, "A live segment, or null.", Scope.READ, cost=one_statement()
    )
    segments: SegmentConnection = resolved_by(
        segments.list_segments, "Segments, ordered by slug.", Scope.READ, cost=page("first")
    )
    task: Task | None = resolved_by(
        tasks.task,
        "A background task of yours, for polling; null when you have no such.",
        Scope.READ,
        cost=one_statement(),
    )
    tasks: TaskConnection = resolved_by(
        tasks.list_tasks, "Your background tasks, the newest first.", Scope.READ, cost=page("first")
    )


@strawberry.type(
    description=(
        "What can be changed. Every mutation takes an idempotency key, and is one database transaction: it happens "
        "wholly or not at all. Several in one request happen one after the other, each for itself."
    )
)
class Mutation:
    create_segment: SegmentPayload = resolved_by(
        segments.create_segment, "Create a segment, without members.", Scope.WRITE, cost=one_statement()
    )
    update_segment: SegmentPayload = resolved_by(
        segments.update_segment, "Change what a segment says about itself.", Scope.WRITE, cost=one_statement()
    )
    delete_segment: SegmentPayload = resolved_by(
        segments.delete_segment,
        "Ends every membership at once, however many there are; history stays; the slug may be used again, for a new "
        "segment without members.",
        Scope.ADMIN,
        cost=one_statement(),
    )
    change_user_segments: ChangeUserSegmentsPayload = resolved_by(
        memberships.change_user_segments,
        "Adds one user to segments and removes it from others, all or nothing.",
        Scope.WRITE,
        cost=writing("input.add", "input.remove"),
    )
    change_memberships: BulkChangePayload = resolved_by(
        bulk.change_memberships,
        "The same for many users in one transaction: up to 10 000 changes. While it is at work, a second or "
        "two at the most, other changes of the same segments wait. Costs a point, and another for every 1000 pairs of "
        "a user and a segment.",
        Scope.WRITE,
        cost=writing("input.changes.add", "input.changes.remove"),
    )
    add_users_to_segment: BulkChangePayload = resolved_by(
        bulk.add_users_to_segment,
        "Adds up to 100 000 users to a segment in one transaction. While it is at work, a second or two at the most, "
        "other changes of the segment wait. Costs a point, and another for every 1000 users.",
        Scope.WRITE,
        cost=writing("input.userIds"),
    )
    remove_users_from_segment: BulkChangePayload = resolved_by(
        bulk.remove_users_from_segment,
        "Removes up to 100 000 users from a segment in one transaction, likewise.",
        Scope.WRITE,
        cost=writing("input.userIds"),
    )
    generate_report: TaskPayload = resolved_by(
        reports.generate_report,
        "Starts a CSV report of membership history; poll `task`, then download its file. One line for each event of "
        "the period, ordered by user, then instant, under the header `user_id,segment,operation,at`; instants are UTC. "
        "What rollouts have begun and ended is in it of users that are named with `userIds`, and of no others. "
        "An id that begins with `=`, `+`, `-`, `@` or an apostrophe, which a spreadsheet might run, has an apostrophe "
        "put in front. Two reports of a period that was over are the same, byte for byte. Costs 50 points.",
        Scope.WRITE,
        cost=of_points(50),
    )
    import_members: TaskPayload = resolved_by(
        imports.import_members,
        "Starts an import: PUT the CSV to `task.uploadUrl`, then poll `task`. One line is one row: the user's id, and "
        "by a header that begins with `user_id` the columns `expires_at` or `ttl_days`, which win over the arguments. "
        "Each row is accounted for in `task.importResult`, and the rejects come back as `task.file`. Costs 50 points.",
        Scope.WRITE,
        cost=of_points(50),
    )
    export_members: TaskPayload = resolved_by(
        imports.export_members,
        "Starts an export of the members of a segment, those that a rollout takes in not among them; poll `task`, then "
        "download its file. An import takes it as it is. Costs 50 points.",
        Scope.WRITE,
        cost=of_points(50),
    )
    cancel_task: TaskPayload = resolved_by(
        tasks.cancel_task,
        "Calls a task off. What it has made so far is thrown away.",
        Scope.WRITE,
        cost=one_statement(),
    )


@strawberry.type(
    description=(
        "What can be watched, over WebSocket (graphql-transport-ws) or as server-sent events (graphql-sse). A "
        "subscription is paid for when it begins, like a query of the same fields. Whoever reads too slowly is "
        "disconnected, and begins anew."
    )
)
class Subscription:
    task_updated: Task = subscribed_by(
        changes.task_updated,
        "A background task of yours as it is, at once and whenever its status or progress has moved; ends when the "
        "task's end was told. BAD_USER_INPUT when you have no such task.",
        Scope.READ,
        cost=one_statement(),
    )
    user_changed: UserChange = subscribed_by(
        changes.user_changed,
        "How a user's memberships change: the first message at once, then one for each change. Every change is told, "
        "within a second of its commit, or 15 seconds at worst where Redis loses what it was told.",
        Scope.READ,
        cost=one_statement(),
    )


class Schema(strawberry.Schema):
    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """Nothing: whoever shows an error to a caller knows whether it belongs into a log (server/errors.py)."""


def schema(
    extensions: Iterable[Callable[[], SchemaExtension]] = (),
    executor: type[StrawberryGraphQLCoreExecutionContext] | None = None,
) -> Schema:
    built = Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        extensions=list(extensions),
        execution_context_class=executor,
        config=StrawberryConfig(scalar_map={datetime: DateTime, BigInt: BIG_INT}),
    )
    leave_defaults_of_null_unsaid(built._schema)  # noqa: SLF001  # the one way to graphql-core's schema
    return built
