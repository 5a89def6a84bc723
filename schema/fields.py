"""How a field names its resolver."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import strawberry
from graphql import GraphQLInputObjectType, GraphQLObjectType, GraphQLSchema, Undefined
from strawberry.parent import StrawberryParent

from db.tables import Scope
from schema.costs import COST, Cost

# Under which a field keeps its scope.
SCOPE = "scope"
# Under which it keeps its resolver, as code that was compiled calls it.
RESOLVER = "resolver"
# Under which it keeps where else its instant is.
INSTANT = "instant"


def resolved_by(
    resolver: Callable[..., Any], description: str, scope: Scope | None = None, *, cost: Cost | None = None
) -> Any:
    """A field computed by `resolver`; on Query and Mutation `scope` says who may ask for it, and without it nobody may.

    What it costs is paid besides the point that every operation costs.

    The annotation on the class is the GraphQL type. The resolver returns a plain record with the same attributes, so
    the two Python types differ and this returns Any.
    """
    metadata = {RESOLVER: resolver, SCOPE: scope, COST: cost}
    return strawberry.field(resolver=_for_graphql(resolver), description=description, metadata=metadata)


def subscribed_by(
    resolver: Callable[..., Any], description: str, scope: Scope | None = None, *, cost: Cost | None = None
) -> Any:
    """A field of Subscription: `resolver` refuses, or gives an iterator of what is told. Paid for when it begins."""
    metadata = {RESOLVER: resolver, SCOPE: scope, COST: cost}
    return strawberry.subscription(resolver=resolver, description=description, metadata=metadata)


def _for_graphql(resolver: Callable[..., Any]) -> Callable[..., Any]:
    """The resolver as graphql-core is to have it.

    What one refuses at once makes it forget the coroutines of the others: so whoever may refuse does so in a coroutine.
    Of a record alone nothing is refused.
    """
    parameters = inspect.signature(resolver).parameters.values()
    if inspect.iscoroutinefunction(resolver) or all(map(_is_parent, parameters)):
        return resolver

    @wraps(resolver)
    async def resolved(*args: Any, **kwargs: Any) -> Any:
        found = resolver(*args, **kwargs)
        return await found if inspect.isawaitable(found) else found

    return resolved


def _is_parent(parameter: inspect.Parameter) -> bool:
    return any(isinstance(each, StrawberryParent) for each in getattr(parameter.annotation, "__metadata__", ()))


def described(description: str, *, instant: str | None = None) -> Any:
    """A field that is the record's attribute of the same name.

    Of a DateTime `instant` names the attribute that has it as db/clock.py does, which is faster to print.
    """
    return strawberry.field(description=description, metadata={INSTANT: instant})


def any_record(_record: object, _info: object) -> bool:
    """`is_type_of` of a type with interfaces: which record it is, the field's annotation has decided already."""
    return True


def leave_defaults_of_null_unsaid(schema: GraphQLSchema) -> None:
    """Make arguments and input fields that may be left out say no more than that: null is only Python's default."""
    for type_ in schema.type_map.values():
        if isinstance(type_, GraphQLObjectType):
            named = [argument for field in type_.fields.values() for argument in field.args.values()]
        elif isinstance(type_, GraphQLInputObjectType):
            named = list(type_.fields.values())
        else:
            continue
        for argument in named:
            if argument.default_value is None:
                argument.default_value = Undefined
