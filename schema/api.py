"""Everything callers can ask for."""

from collections.abc import Callable, Iterable
from datetime import datetime

import strawberry
from graphql import GraphQLError
from strawberry.extensions import SchemaExtension
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext

from resolvers import memberships, reports, segments, tasks, users
from schema.fields import leave_defaults_of_null_unsaid, resolved_by
from schema.payloads import ChangeUserSegmentsPayload, SegmentPayload, TaskPayload
from schema.scalars import BIG_INT, BigInt, DateTime
from schema.types import Segment, SegmentConnection, Task, TaskConnection, User


@strawberry.type(description="What can be asked. Nothing here changes anything.")
class Query:
    user: User = resolved_by(
        users.user, "Every id is a user: users are not registered beforehand, and an id never seen has no segments."
    )
    users: list[User] = resolved_by(users.users, "Up to 100 users, answered in the order asked.")
    segment: Segment | None = resolved_by(segments.segment, "A live segment, or null.")
    segments: SegmentConnection = resolved_by(segments.list_segments, "Segments, ordered by slug.")
    task: Task | None = resolved_by(tasks.task, "A background task of yours, for polling; null when you have no such.")
    tasks: TaskConnection = resolved_by(tasks.list_tasks, "Your background tasks, the newest first.")


@strawberry.type(
    description=(
        "What can be changed. Every mutation takes an idempotency key, and is one database transaction: it happens "
        "wholly or not at all. Several in one request happen one after the other, each for itself."
    )
)
class Mutation:
    create_segment: SegmentPayload = resolved_by(segments.create_segment, "Create a segment, without members.")
    update_segment: SegmentPayload = resolved_by(segments.update_segment, "Change what a segment says about itself.")
    delete_segment: SegmentPayload = resolved_by(
        segments.delete_segment,
        "Ends every membership at once, however many there are; history stays; the slug may be used again, for a new "
        "segment without members.",
    )
    change_user_segments: ChangeUserSegmentsPayload = resolved_by(
        memberships.change_user_segments, "Adds one user to segments and removes it from others, all or nothing."
    )
    generate_report: TaskPayload = resolved_by(
        reports.generate_report,
        "Starts a CSV report of membership history; poll `task`, then download its file. One line for each event of "
        "the period, ordered by user, then instant, under the header `user_id,segment,operation,at`; instants are UTC. "
        "An id that begins with `=`, `+`, `-`, `@` or an apostrophe, which a spreadsheet might run, has an apostrophe "
        "put in front. Two reports of a period that was over are the same, byte for byte.",
    )
    cancel_task: TaskPayload = resolved_by(
        tasks.cancel_task, "Calls a task off. What it has made so far is thrown away."
    )


class Schema(strawberry.Schema):
    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """Nothing: whoever shows an error to a caller knows whether it belongs into a log (server/errors.py)."""


def schema(extensions: Iterable[Callable[[], SchemaExtension]] = ()) -> Schema:
    built = Schema(
        query=Query,
        mutation=Mutation,
        extensions=list(extensions),
        config=StrawberryConfig(scalar_map={datetime: DateTime, BigInt: BIG_INT}),
    )
    leave_defaults_of_null_unsaid(built._schema)  # noqa: SLF001  # the one way to graphql-core's schema
    return built
