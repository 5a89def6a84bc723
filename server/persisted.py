"""Documents that were sent once, and are named by their hashes from then on: what Apollo calls persisted queries."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from graphql import GraphQLError
from strawberry.extensions import SchemaExtension

from db import persisted
from db.cache import Cache
from db.clock import ticks
from server.charging import COST
from server.counting import Counts
from server.documents import LONGEST_CACHED
from server.naming import Named, named, not_found, not_supported, with_names, wrong
from server.trusted import Trusted

SHA256 = re.compile(r"[0-9a-f]{64}")
# What this process keeps by itself: so many, and so many characters together.
MOST, MOST_CHARACTERS = 1_000, 250_000
# How often Redis is told that a document is still in use: what many use is then among those that were used last.
TELL_SECONDS = 300
# And at most how often, when callers send a document that is known together with its hash.
TELL_AGAIN_SECONDS = 10
lookups = Counts(
    "segmentql_persisted_documents_total",
    "Documents that requests have named, by where they were found (process, redis, manifest), or: missing, kept, "
    "refused.",
    ["result"],
)


class Found(NamedTuple):
    text: str | None
    # Under which hash to keep the text, once it was found valid and is paid for.
    digest: str | None = None


@dataclass(slots=True)
class Kept:
    text: str
    # When Redis was told of it last, by `ticks`.
    told: float


class Persisted:
    """Says which text a request means: the one that it sends, one that was sent before, or one of the manifest."""

    def __init__(self, *, automatic: bool) -> None:
        self._automatic = automatic
        # Where there is a manifest, nothing else is executed.
        self.trusted: Trusted | None = None
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._characters = 0

    def extension(self) -> SchemaExtension:
        return PersistedExtension(self)

    def at_hand(self, given: Mapping[str, Any], cache: Cache) -> str | None:
        """The text, if there is nothing to wait for, to keep, or to refuse; None: it goes the long way."""
        query, extensions = given.get("query"), given.get("extensions")
        if query is not None and type(query) is not str:
            return None
        if extensions is not None and (type(extensions) is not dict or extensions.get(COST) is True):
            return None
        extensions = with_names(given, extensions)
        try:
            if self.trusted is not None:
                return self._trusted(self.trusted, query, extensions)
            name = named(extensions)
        except GraphQLError:
            return None
        if name is None:
            return query
        return None if query or not self._automatic else self._remembered(name.id, cache)

    async def find(self, query: str | None, extensions: Mapping[str, Any], cache: Cache) -> Found:
        """The text that is to be executed; None: there is no word of any. Raises GraphQLError where it is refused."""
        try:
            if self.trusted is not None:
                return Found(self._trusted(self.trusted, query, extensions))
            name = named(extensions)
            if name is None:
                return Found(query)
            digest = self._digest(name)
            if query:
                return _verified(query, name.argument, digest)
        except GraphQLError:
            lookups.count(("refused",))
            raise
        text = self._remembered(digest, cache) or await self._shared(digest, cache)
        if text is None:
            lookups.count(("missing",))
            raise not_found()
        return Found(text)

    def keep(self, digest: str, text: str, cache: Cache) -> None:
        """Know it from now on, in this process and in the others."""
        lookups.count(("kept",))
        kept, now = self._kept.get(digest), ticks()
        if kept is not None and now - kept.told <= TELL_AGAIN_SECONDS:
            return
        self._remember(digest, text, now)
        persisted.keep(cache, digest, text)

    def _trusted(self, trusted: Trusted, query: str | None, extensions: Mapping[str, Any]) -> str:
        text = trusted.find(query, extensions)
        lookups.count(("manifest",))
        return text

    def _digest(self, name: Named) -> str:
        if not self._automatic:
            raise not_supported()
        if not SHA256.fullmatch(name.id):
            raise wrong(f"{name.argument} must be the SHA-256 of the document: 64 hexadecimal digits in lower case.")
        return name.id

    def _remembered(self, digest: str, cache: Cache) -> str | None:
        kept = self._kept.get(digest)
        if kept is None:
            return None
        self._kept.move_to_end(digest)
        now = ticks()
        if now - kept.told > TELL_SECONDS:
            kept.told = now
            persisted.keep(cache, digest, kept.text)
        lookups.count(("process",))
        return kept.text

    async def _shared(self, digest: str, cache: Cache) -> str | None:
        found = await persisted.find(cache, digest)
        # What a hash stands for is not decided by who can write into Redis.
        if found is None or hashlib.sha256(found).hexdigest() != digest:
            return None
        lookups.count(("redis",))
        text = found.decode()
        # Redis is told at the next use: there may be none for a long time.
        self._remember(digest, text, ticks() - TELL_SECONDS)
        return text

    def _remember(self, digest: str, text: str, told: float) -> None:
        if digest not in self._kept:
            self._characters += len(text)
        self._kept[digest] = Kept(text, told)
        self._kept.move_to_end(digest)
        while len(self._kept) > MOST or self._characters > MOST_CHARACTERS:
            _, oldest = self._kept.popitem(last=False)
            self._characters -= len(oldest.text)


class PersistedExtension(SchemaExtension):
    """Puts the text at Strawberry's disposal, whichever way the request has come."""

    def __init__(self, known: Persisted) -> None:
        self._known = known
        self._digest: str | None = None

    async def on_operation(self) -> AsyncIterator[None]:
        context = self.execution_context
        extensions = context.operation_extensions or {}
        context.query, self._digest = await self._known.find(context.query, extensions, context.context.services.cache)
        yield

    def on_execute(self) -> Iterator[None]:
        yield
        context = self.execution_context
        # Here it is valid, and paid for: no one fills anything with what does not cost a point.
        if self._digest is not None and context.query:
            self._known.keep(self._digest, context.query, context.context.services.cache)


def _verified(text: str, argument: str, digest: str) -> Found:
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise wrong(f"{argument} is not the SHA-256 of query.")
    # A longer one is executed, too, and asked for each time.
    return Found(text, digest if len(text) <= LONGEST_CACHED else None)
