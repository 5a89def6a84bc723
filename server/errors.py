"""How an error looks to its caller, and whether it belongs into the log."""

import logging
import secrets
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from asyncpg import PostgresConnectionError
from graphql import GraphQLError, GraphQLSyntaxError
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from strawberry.types.execution import ExecutionResult, PreExecutionError

from resolvers.errors import ApiError, Overloaded, TimedOut
from resolvers.idempotency import LOCK_TIMEOUT, sqlstate

log = logging.getLogger(__name__)

QUERY_CANCELED, TRANSACTION_TIMEOUT, TOO_MANY_CONNECTIONS, OUT_OF_MEMORY = "57014", "25P04", "53300", "53200"
TIMEOUTS = frozenset({QUERY_CANCELED, TRANSACTION_TIMEOUT, LOCK_TIMEOUT})
OVERLOADS = frozenset({TOO_MANY_CONNECTIONS, OUT_OF_MEMORY})
# How graphql-core ends the messages of its own limits.
ABORTED = ("Parsing aborted.", "Validation aborted.")


@dataclass(slots=True)
class Failure:
    """What went wrong on our side, perhaps at many places of one request: the first of them stands for all."""

    cause: Exception
    path: list[str | int] | None
    # Under which it is logged, and shown to the caller, if it is masked.
    id: str
    places: int = 0


def answer_of(result: ExecutionResult, *, quiet: bool = False) -> dict[str, Any]:
    """What a caller is answered. Where it is `quiet`, others have said in the log what we stand on and failed."""
    errors = presentable(result, quiet=quiet)
    answer: dict[str, Any] = {}
    if errors:
        answer["errors"] = [error.formatted for error in errors]
    # Without a path it is the request that is wrong: there is no `data` then, not even null.
    if result.data is not None or any(error.path for error in errors):
        answer["data"] = result.data
    if result.extensions:
        answer["extensions"] = result.extensions
    return answer


def presentable(result: ExecutionResult, *, quiet: bool = False) -> list[GraphQLError]:
    """The errors as the caller may see them; those that are ours to mend are logged, and masked with an id."""
    early = isinstance(result, PreExecutionError)
    failures: dict[Hashable, Failure] = {}
    found = [_presentable(error, failures, early=early) for error in result.errors or ()]
    for kind, failure in failures.items():
        where = f"{failure.path}" + (f" and {failure.places - 1} more" if failure.places > 1 else "")
        if isinstance(kind, str) and quiet:
            continue
        if isinstance(kind, str):
            log.warning("%s at %s: %s", kind, where, _told(failure.cause))
        else:
            log.error("internal error %s at %s", failure.id, where, exc_info=failure.cause)
    return found


def _presentable(error: GraphQLError, failures: dict[Hashable, Failure], *, early: bool) -> GraphQLError:
    cause = error.original_error
    # What a scalar of ours refuses is wrapped once more by graphql-core.
    if cause is None or isinstance(cause, GraphQLError):
        error.extensions = {"code": _code(error, early=early), **(error.extensions or {})}
        return error
    known = _known(cause)
    if known is not None and not isinstance(known, Overloaded | TimedOut):
        return _with(error, str(known), known.extensions)
    kind = _raised(cause) if known is None else known.code
    failure = failures.get(kind)
    if failure is None:
        failure = failures[kind] = Failure(cause, error.path, secrets.token_hex(8))
    failure.places += 1
    if known is not None:
        return _with(error, str(known), known.extensions)
    message = f"Something went wrong on our side. The log has the details under {failure.id}."
    return _with(error, message, {"code": "INTERNAL_SERVER_ERROR", "id": failure.id})


def _raised(cause: Exception) -> Hashable:
    """What it is, and the line that has raised it: one mistake in the program, however many values meet it."""
    traceback = cause.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return type(cause), traceback and (traceback.tb_frame.f_code, traceback.tb_lineno)


def _told(cause: Exception) -> str:
    """Its type and the first line of what it says: on others PostgreSQL has the row, and SQLAlchemy the statement."""
    origin: Any = getattr(cause, "orig", None) or cause
    lines = str(origin).strip().splitlines()
    return ": ".join([type(cause).__name__, *lines[:1]])


def _code(error: GraphQLError, *, early: bool) -> str:
    """The code of what graphql-core itself refuses."""
    if error.message.endswith(ABORTED):
        return "LIMIT_EXCEEDED"
    if isinstance(error, GraphQLSyntaxError):
        return "GRAPHQL_PARSE_FAILED"
    # While executing, that is variables and arguments.
    return "GRAPHQL_VALIDATION_FAILED" if early else "BAD_USER_INPUT"


def _known(cause: Exception) -> ApiError | None:
    """What was raised for the caller to see, or a failure of what we stand on: wait, and ask again."""
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, TimeoutError):
        return TimedOut()
    if isinstance(cause, PoolTimeoutError | OSError | PostgresConnectionError | InterfaceError):
        return Overloaded()
    state = sqlstate(cause) if isinstance(cause, DBAPIError) else getattr(cause, "sqlstate", None)
    if state in TIMEOUTS:
        return TimedOut()
    if state in OVERLOADS or (isinstance(cause, DBAPIError) and cause.connection_invalidated):
        return Overloaded()
    return None


def _with(error: GraphQLError, message: str, extensions: dict[str, object]) -> GraphQLError:
    return GraphQLError(message, error.nodes, error.source, error.positions, error.path, None, extensions)
