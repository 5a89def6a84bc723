"""Operations that were seen before: each is compiled once, and then answered without graphql-core.

An answer can be given up at any moment. Whoever is told that has graphql-core answer from the start: what a caller is
told of an error is always what graphql-core says. A query has no effects; what came of a mutation is kept for then.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from types import CoroutineType
from typing import Any

from graphql import (
    DirectiveNode,
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    VariableNode,
    Visitor,
    visit,
)
from strawberry.schema.base import BaseSchema

from db.memberships import Membership
from resolvers.callers import SCOPES, rank
from resolvers.context import Context
from resolvers.later import Later
from schema.costs import Price
from server.access import chosen, needed
from server.compiled_arguments import Variables
from server.compiled_values import SurpriseError
from server.compiling import Answer, compiled
from server.documents import Documents, require_operation
from server.observation import hash_of, name_of
from server.validation import fragments_of

# Of one operation, as many as its directives' variables have had different values.
MOST_VARIANTS = 8
# What the first level's fields are read from: nothing that anybody looks at.
ROOT = object()
# More than any caller's scope.
NOBODY = len(SCOPES)

Complete = Callable[[Any, "Run", Mapping[str, Any]], Any]


# What is waited for, the object that it belongs into, under which key, and what completes it with these variables.
Wanted = tuple[Any, dict[str, Any], str, Complete, Mapping[str, Any]]


class Run:
    """One answer in the making. To resolvers it is the `info` that they get their context from."""

    __slots__ = ("_asked", "_begun", "_later", "_tasks", "_waiting", "context", "field_name")

    def __init__(self, context: Context, field_name: str) -> None:
        self.context = context
        # Of the first level: a mutation has one.
        self.field_name = field_name
        # Memberships that are to be asked for, and those that were, with who tells them all.
        self._later: list[Wanted] = []
        self._asked: list[tuple[list[Wanted], asyncio.Future[list[list[Membership]]]]] = []
        # Everything else; how many of it were looked at, whether they are at work; and those that are.
        self._waiting: list[Wanted] = []
        self._begun = 0
        self._tasks: list[asyncio.Task[Any]] = []

    def resolve(self, value: Any, made: dict[str, Any], key: str, complete: Complete, v: Mapping[str, Any]) -> None:
        """Complete what a resolver gave, and put it into its place: now, or when it is there."""
        if type(value) is Later:
            self._later.append((value, made, key, complete, v))
        elif type(value) is CoroutineType:
            self._waiting.append((value, made, key, complete, v))
        else:
            made[key] = complete(value, self, v)

    def ask(self) -> None:
        """Ask for all memberships that were not asked for yet."""
        if not self._later:
            return
        wanted, self._later = self._later, []
        reads = self.context.reads
        for latest in (False, True):
            some = [each for each in wanted if each[0].latest is latest]
            if some:
                self._asked.append((some, reads.together([each[0].user_id for each in some], latest=latest)))

    async def finish(self) -> None:
        """Wait for everything, and for what comes of it."""
        waiting, done = self._waiting, 0
        while True:
            self.ask()
            if self._asked:
                self._begin(done)
                await self._complete(*self._asked.pop())
            elif done < len(waiting):
                value, made, key, complete, v = waiting[done]
                done += 1
                self._begin(done)
                made[key] = complete(await value, self, v)
            else:
                return

    async def _complete(self, asked: list[Wanted], answer: "asyncio.Future[list[list[Membership]]]") -> None:
        found = await answer
        if not asked[0][0].latest:
            self.context.reads.all_noted(found)
        for (later, made, key, complete, v), memberships in zip(asked, found, strict=True):
            made[key] = complete(later.make(memberships), self, v)

    def _begin(self, first: int) -> None:
        """All that is waited for from there on goes on meanwhile; the one before is waited for at once."""
        for place in range(max(first, self._begun), len(self._waiting)):
            value, made, key, complete, v = self._waiting[place]
            task = asyncio.create_task(value)
            self._tasks.append(task)
            self._waiting[place] = (task, made, key, complete, v)
        self._begun = len(self._waiting)

    async def abandon(self) -> None:
        """Leave nothing at work, and no failure that nobody has looked at: what was begun is not wanted any more."""
        for value, *_ in self._waiting:
            if type(value) is CoroutineType:
                value.close()
        for _, answer in self._asked:
            answer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


class Plan:
    """What is known of an operation: what it is called, costs and needs, and the code that answers it."""

    def __init__(
        self, built: BaseSchema, document: DocumentNode, operation: OperationDefinitionNode, text: str
    ) -> None:
        schema: GraphQLSchema = built._schema  # type: ignore[attr-defined]  # noqa: SLF001  # the one way to graphql-core's schema
        self._built = built
        self._operation = operation
        self._fragments = fragments_of(document)
        self._conditions = tuple(dict.fromkeys(_conditions(document)))
        self._variants: dict[tuple[Any, ...], tuple[Answer, bool] | None] = {}
        self.variables = Variables(schema, operation)
        self.price = Price(schema, document, operation)
        self.hash = hash_of(text)
        self.name = name_of(operation)
        self.kind = operation.operation.value
        fields = list(needed(schema, document, operation))
        self.field_name = fields[0][0] if fields else ""
        # What a caller's scope has to rank.
        self.rank = max((NOBODY if scope is None else rank(scope) for _, scope in fields), default=0)

    def answer(self, coerced: Mapping[str, Any]) -> tuple[Answer, bool]:
        """The code for these variables, and whether users' memberships are all that it waits for.

        Raises SurpriseError when there is none.
        """
        values = tuple([coerced.get(name) for name in self._conditions])
        found = self._variants.get(values)
        if found is None:
            if values in self._variants or len(self._variants) >= MOST_VARIANTS:
                raise SurpriseError
            self._variants[values] = None  # whatever stops it now would stop it again
            found = compiled(self._built, self._fragments, self._operation, self.variables, coerced)
            self._variants[values] = found
        return found


class Plans:
    """The plans of the documents that are kept, made when a document is seen for the second time."""

    def __init__(self, schema: BaseSchema, documents: Documents) -> None:
        self._schema = schema
        self._documents = documents

    def find(self, text: str, name: str | None) -> Plan | None:
        """The plan of a document's operation; None where graphql-core has to answer."""
        known = self._documents.find(text)
        if known is None:
            return None
        if name not in known.plans:
            try:
                require_operation(known.document, name)
            except GraphQLError:
                return None
            known.plans[name] = self._plan(known.document, name, text)
        plan: Plan | None = known.plans[name]
        return plan

    def _plan(self, document: DocumentNode, name: str | None, text: str) -> Plan | None:
        try:
            return Plan(self._schema, document, chosen(document, name), text)
        except (SurpriseError, RecursionError):  # the latter only where far more levels are allowed than by default
            return None


def _conditions(document: DocumentNode) -> Iterator[str]:
    """The variables that the document's directives depend on."""
    found: list[str] = []

    class Directives(Visitor):
        def enter_directive(self, node: DirectiveNode, *_: Any) -> None:
            values = (argument.value for argument in node.arguments or ())
            found.extend(value.name.value for value in values if isinstance(value, VariableNode))

    visit(document, Directives())
    return iter(found)
