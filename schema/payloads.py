"""What mutations answer."""

import strawberry

from resolvers.errors import UserErrorCode
from schema.fields import any_record, described
from schema.types import Segment, Task, User


@strawberry.type(description="Something that the caller got wrong.")
class UserError:
    code: UserErrorCode = described("For programs.")
    message: str = described("For people: a full sentence.")
    path: list[str] = described(
        "The argument: names of arguments and fields, and positions in lists, from the mutation's arguments down."
    )


@strawberry.interface(description="What every mutation answers.")
class MutationPayload:
    replayed: bool = described("True when this key was used before and the answer is the first call's.")
    user_errors: list[UserError] = described(
        "What the caller got wrong; empty on success. When it is not empty nothing was changed, and the key is unused."
    )


@strawberry.type(description="A segment that was created, changed or deleted.")
class SegmentPayload(MutationPayload):
    is_type_of = staticmethod(any_record)

    segment: Segment | None = described("The segment as it is now; null when there are userErrors.")


@strawberry.type(description="What became of each slug that was asked for: every one is in exactly one list.")
class ChangeUserSegmentsPayload(MutationPayload):
    is_type_of = staticmethod(any_record)

    user: User | None = described("The user as of now; null when there are userErrors.")
    added: list[str] = described("Slugs of memberships that began.")
    updated: list[str] = described("Slugs of memberships whose expiry moved.")
    removed: list[str] = described("Slugs of memberships that ended.")
    unchanged: list[str] = described("Slugs that were asked for and already were so.")


@strawberry.type(
    description=(
        "What became of many memberships: added + updated + removed + unchanged is the number of distinct pairs of a "
        "user and a segment that were asked for."
    )
)
class BulkChangePayload(MutationPayload):
    is_type_of = staticmethod(any_record)

    added: int = described("Memberships that began.")
    updated: int = described("Memberships whose expiry moved.")
    removed: int = described("Memberships that ended.")
    unchanged: int = described("Pairs that were asked for and already were so.")


@strawberry.type(description="A background task that was started or called off.")
class TaskPayload(MutationPayload):
    is_type_of = staticmethod(any_record)

    task: Task | None = described("The task as it is now; null when there are userErrors, or it was forgotten since.")
