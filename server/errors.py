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


def presentable(result: ExecutionResult) -> list[GraphQLError]:
    """The errors as the caller may see them; those that are ours to mend are logged, and masked with an id."""
    early = isinstance(result, PreExecutionError)
    return [_presentable(error, early=early) for error in result.errors or ()]


def _presentable(error: GraphQLError, *, early: bool) -> GraphQLError:
    if error.extensions and "code" in error.extensions:
        return error
    cause = error.original_error
    if cause is None:
        return _with(error, error.message, {"code": _code(error, early=early)})
    known = _known(cause)
    if known is not None:
        log.warning("%s at %s: %r", known.code, error.path, cause)
        return _with(error, str(known), known.extensions)
    error_id = secrets.token_hex(8)
    log.error("internal error %s at %s", error_id, error.path, exc_info=cause)
    message = f"Something went wrong on our side. The log has the details under {error_id}."
    return _with(error, message, {"code": "INTERNAL_SERVER_ERROR", "id": error_id})


def _code(error: GraphQLError, *, early: bool) -> str:
    if isinstance(error, GraphQLSyntaxError):
        return "LIMIT_EXCEEDED" if "Parsing aborted" in error.message else "GRAPHQL_PARSE_FAILED"
    # What graphql-core itself refuses while executing are variables and arguments.
    return "GRAPHQL_VALIDATION_FAILED" if early else "BAD_USER_INPUT"


def _known(cause: Exception) -> ApiError | None:
    """Failures of what we stand on that a caller can do something about: wait, and ask again."""
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
