"""How an error looks to its caller, and whether it belongs into the log."""

import logging
import secrets

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


def presentable(result: ExecutionResult) -> list[GraphQLError]:
    """The errors as the caller may see them; those that are ours to mend are logged, and masked with an id."""
    early = isinstance(result, PreExecutionError)
    return [_presentable(error, early=early) for error in result.errors or ()]


def _presentable(error: GraphQLError, *, early: bool) -> GraphQLError:
    cause = error.original_error
    # What a scalar of ours refuses is wrapped once more by graphql-core.
    if cause is None or isinstance(cause, GraphQLError):
        error.extensions = {"code": _code(error, early=early), **(error.extensions or {})}
        return error
    known = _known(cause)
    if known is None:
        return _masked(error, cause)
    if isinstance(known, Overloaded | TimedOut):
        log.warning("%s at %s: %r", known.code, error.path, cause)
    return _with(error, str(known), known.extensions)


def _masked(error: GraphQLError, cause: Exception) -> GraphQLError:
    error_id = secrets.token_hex(8)
    log.error("internal error %s at %s", error_id, error.path, exc_info=cause)
    message = f"Something went wrong on our side. The log has the details under {error_id}."
    return _with(error, message, {"code": "INTERNAL_SERVER_ERROR", "id": error_id})


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
