"""How values of variables become what resolvers take: worked out once for each type, not again for each value.

It does what graphql-core's coercion and Strawberry's conversion do with what is right. Everything else raises: then
they look closer, and may even find a value for it.
"""

from collections.abc import Callable
from dataclasses import MISSING
from functools import partial
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLID,
    GraphQLInputObjectType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLScalarType,
    GraphQLString,
    GraphQLType,
    Undefined,
    is_required_input_field,
)
from graphql.utilities.coerce_input_value import coerce_default_value
from strawberry.schema.base import BaseSchema
from strawberry.types.arguments import convert_argument
from strawberry.types.base import StrawberryList, StrawberryOptional, has_object_definition

from server.compiled_values import SurpriseError

Coerce = Callable[[Any], Any]


def coercing(type_: GraphQLType | None) -> Coerce:
    """What graphql-core makes of a value of that type."""
    if isinstance(type_, GraphQLNonNull):
        coerce = _not_null(coercing(type_.of_type))
        return _text(coerce) if _is_text(type_) else coerce
    if isinstance(type_, GraphQLScalarType | GraphQLEnumType):
        return _leaf(type_.coerce_input_value)
    if isinstance(type_, GraphQLList):
        return _texts if _is_text(type_.of_type) else _list(coercing(type_.of_type))
    if isinstance(type_, GraphQLInputObjectType) and not type_.is_one_of:
        return _object(type_)
    raise SurpriseError


def _not_null(coerce: Coerce) -> Coerce:
    def coerced(value: Any) -> Any:
        if value is None:
            raise SurpriseError
        return coerce(value)

    return coerced


def _leaf(coerce: Coerce) -> Coerce:
    def coerced(value: Any) -> Any:
        found = None if value is None else coerce(value)
        if found is Undefined:
            raise SurpriseError
        return found

    return coerced


def _list(coerce: Coerce) -> Coerce:
    def coerced(values: Any) -> Any:
        if values is None:
            return None
        if type(values) is not list:
            raise SurpriseError
        return [coerce(each) for each in values]

    return coerced


def _is_text(type_: GraphQLType) -> bool:
    return isinstance(type_, GraphQLNonNull) and type_.of_type in (GraphQLString, GraphQLID)


def _text(coerce: Coerce) -> Coerce:
    """Nearly all arguments are texts."""
    return lambda value: value if type(value) is str else coerce(value)


def _texts(values: Any) -> Any:
    """There may be many."""
    if values is not None and (type(values) is not list or set(map(type, values)) - {str}):
        raise SurpriseError
    return values


def _object(type_: GraphQLInputObjectType) -> Coerce:
    known = {name: (field.out_name or name, coercing(field.type)) for name, field in type_.fields.items()}
    required = frozenset(name for name, field in type_.fields.items() if is_required_input_field(field))
    defaults = [
        (name, field.out_name or name, field)
        for name, field in type_.fields.items()
        if field.default_value is not Undefined
    ]

    def coerced(value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not dict or not required <= value.keys():
            raise SurpriseError
        found = {}
        for name, given in value.items():
            out_name, coerce = known[name]
            found[out_name] = coerce(given)
        for name, out_name, field in defaults:
            if name not in value:
                found[out_name] = coerce_default_value(field)
        return found

    return coerced


def converting(schema: BaseSchema, type_: Any) -> Coerce | None:
    """What Strawberry makes of what graphql-core has coerced; None: it leaves it as it is."""
    if isinstance(type_, StrawberryOptional):
        return converting(schema, type_.of_type)
    if isinstance(type_, StrawberryList):
        item = converting(schema, type_.of_type)
        return None if item is None else _or_null(partial(_each, item))
    if not has_object_definition(type_):
        return None
    definition = type_.__strawberry_definition__
    if definition.from_input is not None:
        registry = schema.schema_converter.scalar_registry
        return lambda value: convert_argument(value, type_, registry, schema.config)
    names = {}
    for field in definition.fields:
        inner = converting(schema, field.resolve_type(type_definition=definition))
        names[schema.config.name_converter.from_field(field)] = field.python_name, inner
    absent = {
        field.python_name: None
        for field in definition.fields
        if field.default is MISSING and field.default_factory is MISSING
    }

    def convert(value: Any) -> Any:
        given = dict(absent)
        for name, each in value.items():
            python_name, inner = names[name]
            given[python_name] = each if inner is None else inner(each)
        return type_(**given)

    return _or_null(convert)


def _each(convert: Coerce, values: Any) -> list[Any]:
    return [convert(each) for each in values]


def _or_null(convert: Coerce) -> Coerce:
    return lambda value: None if value is None else convert(value)
