"""How a request names a document instead of sending it, and how it is told that there is none of that name."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from graphql import GraphQLError

# GraphQL over HTTP's own parameter, and those that are Relay's habit.
DOCUMENT_ID, RELAY_IDS = "documentId", ("id", "doc_id")
# Apollo's, within `extensions`.
PERSISTED_QUERY, HASH = "persistedQuery", "sha256Hash"
VERSION = 1
# What GraphQL over HTTP puts before a hash. Apollo does not, so it is the same name without.
PREFIX = "sha256:"


class Named(NamedTuple):
    id: str
    # Where the request says so.
    argument: str


def with_names(given: Mapping[str, Any], extensions: Mapping[str, Any] | None) -> dict[str, Any]:
    """The extensions, and in them what the request says beside them of its document.

    There it is found whichever way the request has come: over a WebSocket clients have no other place for it. What
    they call `id` there is something of their own.
    """
    names = {name: given[name] for name in (DOCUMENT_ID, *RELAY_IDS) if given.get(name) not in (None, "")}
    theirs = {name: value for name, value in (extensions or {}).items() if name not in RELAY_IDS}
    return {**theirs, **names}


def named(extensions: Mapping[str, Any], *, relay: bool = False) -> Named | None:
    """What the request calls its document; None: nothing. Raises GraphQLError where that cannot be understood."""
    names = list(_names(extensions, (DOCUMENT_ID, *RELAY_IDS) if relay else (DOCUMENT_ID,)))
    for other in names[1:]:
        if other.id != names[0].id:
            raise wrong(f"{names[0].argument} and {other.argument} name different documents.")
    return names[0] if names else None


def plain(id_: str) -> str:
    return id_.removeprefix(PREFIX)


def wrong(message: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": "BAD_USER_INPUT"})


def not_found() -> GraphQLError:
    # Apollo Client and urql go by these very words.
    return GraphQLError("PersistedQueryNotFound", extensions={"code": "PERSISTED_QUERY_NOT_FOUND"})


def not_supported() -> GraphQLError:
    return GraphQLError("PersistedQueryNotSupported", extensions={"code": "PERSISTED_QUERY_NOT_SUPPORTED"})


def _names(extensions: Mapping[str, Any], arguments: tuple[str, ...]) -> Iterator[Named]:
    for argument in arguments:
        if (id_ := extensions.get(argument)) is not None:
            if not isinstance(id_, str):
                raise wrong(f"{argument} must be a string.")
            yield Named(plain(id_), argument)
    query = extensions.get(PERSISTED_QUERY)
    if query is None:
        return
    where = f"extensions.{PERSISTED_QUERY}"
    if not isinstance(query, dict):
        raise wrong(f"{where} must be an object.")
    if query.get("version") != VERSION:
        raise wrong(f"{where}.version must be {VERSION}.")
    if not isinstance(query.get(HASH), str):
        raise wrong(f"{where}.{HASH} must be a string.")
    yield Named(plain(query[HASH]), f"{where}.{HASH}")
