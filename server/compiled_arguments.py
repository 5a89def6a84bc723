"""How a compiled operation comes by its variables, and its fields by their arguments.

What stands in the document is converted once, by graphql-core. A variable is handed on as graphql-core coerces it, and
an input as Strawberry converts it; one within a list or an object is rare, and left to graphql-core altogether.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from graphql import (
    ArgumentNode,
    FieldNode,
    GraphQLArgument,
    GraphQLField,
    GraphQLNonNull,
    GraphQLSchema,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    Undefined,
    ValueNode,
    VariableNode,
    get_named_type,
    get_variable_values,
    is_leaf_type,
    is_required_argument,
    type_from_ast,
)
from graphql.execution.values import coerce_argument
from strawberry.schema.base import BaseSchema
from strawberry.schema.name_converter import NameConverter
from strawberry.types.field import StrawberryField

from server.compiled_inputs import coercing, converting
from server.compiled_values import SurpriseError

# Names a value for the code that is being written, by a hint.
Named = Callable[[str, object], str]

_converter = NameConverter()


class Variables:
    """The variables of an operation, from what a request gives."""

    def __init__(self, schema: GraphQLSchema, operation: OperationDefinitionNode) -> None:
        self._schema = schema
        self._definitions = operation.variable_definitions or ()
        types = {d.variable.name.value: type_from_ast(schema, d.type) for d in self._definitions}
        # Those that are there in any case, and are not null.
        self.certain = frozenset(name for name, type_ in types.items() if isinstance(type_, GraphQLNonNull))
        self._coercing = {name: coercing(type_) for name, type_ in types.items()}

    def coerced(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values by their names. Raises SurpriseError for what graphql-core refuses."""
        try:
            return {name: coerce(given[name]) for name, coerce in self._coercing.items()}
        except Exception:  # noqa: BLE001, S110  # something is missing or wrong: graphql-core knows
            pass
        found = get_variable_values(self._schema, self._definitions, dict(given), max_errors=1)
        if isinstance(found, list):
            raise SurpriseError
        return found.coerced


def arguments(
    definition: GraphQLField,
    declared: StrawberryField,
    node: FieldNode,
    variables: Variables,
    named: Named,
    schema: BaseSchema,
) -> Iterator[str]:
    """What stands between the brackets of the resolver's call, `v` being the variables."""
    given = {argument.name.value: argument for argument in node.arguments or ()}
    optional: list[tuple[str, str, GraphQLArgument]] = []
    for argument in declared.arguments:
        name = _converter.from_argument(argument)
        defined = definition.args[name]
        value = given[name].value if name in given else None
        if not is_leaf_type(get_named_type(defined.type)):
            if value is None and defined.default_value is Undefined:
                continue
            if not isinstance(value, VariableNode) or value.name.value not in variables.certain:
                raise SurpriseError
            convert = converting(schema, argument.type) or _itself
            yield f"{argument.python_name}={named('convert', convert)}(v[{value.name.value!r}])"
        elif not isinstance(value, VariableNode):
            yield from _constant(node, name, defined, given.get(name), argument.python_name, named)
        elif value.name.value in variables.certain:
            yield f"{argument.python_name}=v[{value.name.value!r}]"
        else:
            optional.append((argument.python_name, value.name.value, defined))
    if optional:
        yield f"**{named('optional', _optional(node, optional))}(v)"


def _itself(value: Any) -> Any:
    return value


def _constant(
    node: FieldNode, name: str, defined: GraphQLArgument, given: ArgumentNode | None, python_name: str, named: Named
) -> Iterator[str]:
    if given is not None and _has_variables(given.value):
        raise SurpriseError
    coerced: dict[str, Any] = {}
    coerce_argument(coerced, node, name, defined, given, None, None)
    if coerced:
        yield f"{python_name}={named('given', next(iter(coerced.values())))}"


def _optional(
    node: FieldNode, wanted: Sequence[tuple[str, str, GraphQLArgument]]
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Arguments that depend on variables which may be left out, or be null."""
    known = []
    for python_name, variable, defined in wanted:
        default: dict[str, Any] = {}
        required = is_required_argument(defined)
        if not required:
            coerce_argument(default, node, python_name, defined, None, None, None)
        known.append((python_name, variable, required, isinstance(defined.type, GraphQLNonNull), default))

    def collected(v: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for python_name, variable, required, not_null, default in known:
            if variable in v:
                if not_null and v[variable] is None:
                    raise SurpriseError
                found[python_name] = v[variable]
            elif required:
                raise SurpriseError
            elif default:
                found[python_name] = next(iter(default.values()))
        return found

    return collected


def _has_variables(node: ValueNode) -> bool:
    if isinstance(node, ListValueNode):
        return any(map(_has_variables, node.values))
    if isinstance(node, ObjectValueNode):
        return any(_has_variables(field.value) for field in node.fields)
    return isinstance(node, VariableNode)
