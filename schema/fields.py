"""How a field names its resolver."""

from collections.abc import Callable
from typing import Any

import strawberry
from graphql import GraphQLInputObjectType, GraphQLObjectType, GraphQLSchema, Undefined

from db.tables import Scope
from schema.costs import COST, Cost

# Under which a field keeps its scope.
SCOPE = "scope"
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
    return strawberry.field(resolver=resolver, description=description, metadata={SCOPE: scope, COST: cost})


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
