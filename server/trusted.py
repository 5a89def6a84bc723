"""Documents that the operator trusts: a manifest that clients' builds write, and beside which nothing is executed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from graphql import GraphQLError, GraphQLSchema, parse
from strawberry.schema.base import BaseSchema

from server import validation
from server.documents import Documents, excesses, require_size
from server.naming import named, not_found, plain, wrong
from server.settings import Settings, StartError

# Whose manifest has this `format` has a list of operations; every other one is an object of texts by their ids.
APOLLO = "apollo-persisted-query-manifest"
# All texts together. Parsed they take about 90 bytes each, and are kept in every process for as long as it runs.
MOST_CHARACTERS = 2_000_000
# The texts, and what JSON and Apollo write around them.
MOST_BYTES = 16_777_216


class Trusted:
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._trusted = frozenset(texts.values())

    def find(self, query: str | None, extensions: Mapping[str, Any]) -> str:
        """The text that the request means, by its name or by itself. Raises GraphQLError for every other one."""
        name = named(extensions, relay=True)
        if query and query not in self._trusted:
            message = "Only documents of the manifest are executed here, and this text is not one of them."
            raise GraphQLError(message, extensions={"code": "DOCUMENT_NOT_TRUSTED"})
        if name is None:
            if not query:
                raise wrong("There must be a documentId, or a trusted document as query.")
            return query
        found = self._texts.get(name.id)
        if found is None:
            raise not_found()
        if query and query != found:
            raise wrong(f"{name.argument} names another document than query.")
        return found


def read(settings: Settings, built: BaseSchema, documents: Documents) -> Trusted | None:
    """The documents of the manifest, each known from now on; None: there is no manifest. Raises StartError."""
    path = settings.trusted_documents
    if path is None:
        return None
    if settings.graphiql == "on":
        raise StartError(
            "GraphiQL cannot ask anything where only trusted documents are executed: set SEGMENTQL_GRAPHIQL=off, or no "
            "SEGMENTQL_TRUSTED_DOCUMENTS."
        )
    trusted = _texts(path)
    schema: GraphQLSchema = built._schema  # type: ignore[attr-defined]  # noqa: SLF001  # the one way to graphql-core's schema
    for id_, text in trusted.items():
        try:
            _admit(schema, documents, text)
        except GraphQLError as error:
            raise _unusable(path, f"{id_}: {_told(error)}") from error
    return Trusted(trusted)


def _admit(schema: GraphQLSchema, documents: Documents, text: str) -> None:
    limits = documents.limits
    require_size(text, limits.tokens)
    document = parse(text, max_lexical_tokens=limits.tokens, max_comments=limits.tokens)
    for mistake in excesses(document, limits) or validation.mistakes(schema, document, discreet=documents.discreet):
        raise mistake
    documents.pin(text, document)


def _texts(path: Path) -> dict[str, str]:
    """The manifest's texts, by their ids."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _unusable(path, f"it is larger than {MOST_BYTES} bytes")
        manifest = orjson.loads(path.read_bytes())
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be read") from error
    except ValueError as error:
        raise _unusable(path, "it is not JSON in UTF-8") from error
    if not isinstance(manifest, dict):
        raise _unusable(path, "it is not a JSON object")
    texts: dict[str, str] = {}
    for id_, text in _apollo(path, manifest) if manifest.get("format") == APOLLO else manifest.items():
        if not id_ or not isinstance(text, str):
            raise _unusable(path, f"{id_!r} is not the id of a text")
        if texts.setdefault(plain(id_), text) != text:
            raise _unusable(path, f"{id_} stands for two different texts")
    if sum(map(len, texts.values())) > MOST_CHARACTERS:
        raise _unusable(path, f"its documents have more than {MOST_CHARACTERS} characters")
    return texts


def _apollo(path: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    operations = manifest.get("operations")
    if manifest.get("version") != 1 or not isinstance(operations, list):
        raise _unusable(path, f"version 1 and operations make a manifest of {APOLLO}")
    for number, operation in enumerate(operations):
        if not isinstance(operation, dict) or not isinstance(operation.get("id"), str) or "body" not in operation:
            raise _unusable(path, f"operations[{number}] must have an id and a body")
        yield operation["id"], operation["body"]


def _told(error: GraphQLError) -> str:
    where = "".join(f" (line {place.line}, column {place.column})" for place in (error.locations or ())[:1])
    return f"{error.message.rstrip('.')}{where}"


def _unusable(path: Path, why: str) -> StartError:
    return StartError(f"The trusted documents in {path} cannot be used: {why.rstrip('.')}.")
