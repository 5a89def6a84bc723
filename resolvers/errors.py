"""Everything a caller can get wrong, on one screen. Anything else is masked and logged."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class UserErrorCode(StrEnum):
    """Why a mutation was refused."""

    INVALID = "INVALID"
    SEGMENT_EXISTS = "SEGMENT_EXISTS"
    SEGMENT_NOT_FOUND = "SEGMENT_NOT_FOUND"
    CONFLICTING_CHANGE = "CONFLICTING_CHANGE"
    TOO_MANY_ITEMS = "TOO_MANY_ITEMS"
    TASK_NOT_FOUND = "TASK_NOT_FOUND"
    NOT_CANCELABLE = "NOT_CANCELABLE"
    IDEMPOTENCY_KEY_INVALID = "IDEMPOTENCY_KEY_INVALID"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    IDEMPOTENCY_IN_PROGRESS = "IDEMPOTENCY_IN_PROGRESS"


@dataclass(frozen=True, slots=True)
class UserError:
    code: UserErrorCode
    # A full sentence for a person.
    message: str
    # Names of arguments and fields, and positions in lists, from the mutation's arguments down.
    path: list[str]


class Refused(Exception):  # a refusal is an answer, not an error
    """What a mutation was asked for cannot be done. Raised inside its transaction, which it rolls back."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = list(errors)


def invalid(message: str, *path: str) -> UserError:
    return UserError(UserErrorCode.INVALID, message, list(path))


def segment_exists(slug: str) -> UserError:
    return UserError(UserErrorCode.SEGMENT_EXISTS, f"A segment named {slug} already exists.", ["input", "slug"])


def segment_not_found(slug: str, *path: str) -> UserError:
    return UserError(UserErrorCode.SEGMENT_NOT_FOUND, f"There is no segment named {slug}.", list(path))


def conflicting_change(slug: str, *path: str) -> UserError:
    return UserError(UserErrorCode.CONFLICTING_CHANGE, f"Segment {slug} cannot be both added and removed.", list(path))


def conflicting_expiries(slug: str, *path: str) -> UserError:
    message = f"The user cannot be added to segment {slug} until two different instants."
    return UserError(UserErrorCode.CONFLICTING_CHANGE, message, list(path))


def too_many_items(found: int, limit: int, *path: str) -> UserError:
    return UserError(
        UserErrorCode.TOO_MANY_ITEMS, f"The list has {found} items, at most {limit} are allowed.", list(path)
    )


# Of what is wrong with a long list so much is told, and how much more there is.
TOLD = 100


def told(wrong: Sequence[UserError], *path: str) -> list[UserError]:
    if len(wrong) <= TOLD:
        return list(wrong)
    more = UserError(wrong[TOLD].code, f"{len(wrong) - TOLD} more are wrong, too.", list(path))
    return [*wrong[:TOLD], more]


def task_not_found(task_id: str) -> UserError:
    return UserError(UserErrorCode.TASK_NOT_FOUND, f"You have no task {task_id}.", ["id"])


def not_cancelable(why: str) -> UserError:
    return UserError(UserErrorCode.NOT_CANCELABLE, why, ["id"])


def key_invalid() -> UserError:
    return UserError(
        UserErrorCode.IDEMPOTENCY_KEY_INVALID,
        "An idempotency key has 8 to 128 printable ASCII characters.",
        ["idempotencyKey"],
    )


def key_reused() -> UserError:
    return UserError(
        UserErrorCode.IDEMPOTENCY_KEY_REUSED,
        "This idempotency key was used before, with other arguments or for another mutation.",
        ["idempotencyKey"],
    )


def in_progress() -> UserError:
    return UserError(
        UserErrorCode.IDEMPOTENCY_IN_PROGRESS,
        "A mutation with this idempotency key is still at work. Ask again with the same key.",
        ["idempotencyKey"],
    )


class ApiError(Exception):
    """Ends a field with a GraphQL error whose message and code are meant for the caller."""

    code = "INTERNAL_SERVER_ERROR"

    @property
    def extensions(self) -> dict[str, object]:  # graphql-core copies this into the response
        return {"code": self.code}


class BadUserInput(ApiError):
    code = "BAD_USER_INPUT"

    def __init__(self, argument: str, what: str) -> None:
        super().__init__(f"Argument {argument}: {what}")
        self.argument = argument

    @property
    def extensions(self) -> dict[str, object]:
        return {"code": self.code, "argument": self.argument}


class LimitExceeded(ApiError):
    code = "LIMIT_EXCEEDED"


class Unauthenticated(ApiError):
    """One message for all reasons: who tries tokens learns nothing from it."""

    code = "UNAUTHENTICATED"

    def __init__(self) -> None:
        super().__init__("A token is needed that is good: send it as `Authorization: Bearer <token>`.")


class Forbidden(ApiError):
    code = "FORBIDDEN"


class RateLimited(ApiError):
    code = "RATE_LIMITED"

    def __init__(self, retry_ms: int) -> None:
        super().__init__(f"You have asked for too much at once. Try again in {retry_ms} ms.")
        self.retry_ms = retry_ms

    @property
    def extensions(self) -> dict[str, object]:
        return {"code": self.code, "retryAfterMs": self.retry_ms}


class Overloaded(ApiError):
    code = "OVERLOADED"

    def __init__(self) -> None:
        super().__init__("The service cannot take this on right now. Try again shortly, a mutation with the same key.")


class TimedOut(ApiError):
    code = "TIMEOUT"

    def __init__(self) -> None:
        super().__init__("This took too long and was given up. Try again, a mutation with the same key.")
