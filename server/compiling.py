"""From an operation that was found valid to Python that answers it: what it asks for is worked out once.

The code calls the resolvers and reads the records that graphql-core would. It knows right answers alone: whatever is
out of the ordinary, while it is written or while it runs, is left to graphql-core, which begins anew
(server/plans.py). For `query ($id: ID!) { user(id: $id) { segments { slug } } }` it is, with telling names:

    def user(r, run, v):
        made = {"segments": None}
        run.resolve(user_segments(user=r, info=run), made, "segments", segments, v)
        return made

    def segments(given, run, v):
        return [{"slug": x if type(x := each.slug) is str else leaf(serialize_string, x)} for each in listed(given)]
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from graphql import (
    FieldNode,
    GraphQLEnumType,
    GraphQLField,
    GraphQLLeafType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    get_nullable_type,
    is_leaf_type,
)
from graphql.execution.collect_fields import FieldDetails, FragmentDetails, collect_fields, collect_subfields
from graphql.execution.values import VariableValues
from strawberry.schema.base import BaseSchema
from strawberry.types.field import StrawberryField

from db.clock import NEVER, as_text
from schema.fields import INSTANT, RESOLVER, any_record
from server.compiled_arguments import Variables, arguments
from server.compiled_values import Objects, Rendering, SurpriseError, leaf, leaf_or_null, listed, present
from server.validation import Fragments

# What answers: from the request's run (server/runs.py) and its variables to the answer's `data`.
Answer = Callable[[Any, Any, Mapping[str, Any]], dict[str, Any]]
Details = list[FieldDetails]
Grouped = Mapping[str, Details]
# Of each key the field's definition, None for `__typename`.
Fields = Mapping[str, tuple[GraphQLField | None, Details]]
# What GraphQL's own scalars leave as it is; every other value is converted as graphql-core does.
AS_IT_IS = {"String": "str", "ID": "str", "Boolean": "bool"}
# More is not compiled: that would take longer than a request may keep others waiting.
MOST_FIELDS = 200


def compiled(
    schema: BaseSchema,
    fragments: Fragments,
    operation: OperationDefinitionNode,
    variables: Variables,
    coerced: Mapping[str, Any],
) -> tuple[Answer, bool]:
    """What answers the operation as long as the variables that its directives depend on have these values.

    And whether users' memberships are all that it waits for. Raises SurpriseError for what does not compile.
    """
    program = Program(schema, fragments, operation, variables, coerced)
    name = program.write()
    return program.run()[name], program.only_memberships


class Program:
    """Collects lines of code, and what they name."""

    def __init__(
        self,
        schema: BaseSchema,
        fragments: Fragments,
        operation: OperationDefinitionNode,
        variables: Variables,
        coerced: Mapping[str, Any],
    ) -> None:
        self._schema: GraphQLSchema = schema._schema  # type: ignore[attr-defined]  # noqa: SLF001  # the one way to graphql-core's schema
        self._built = schema
        self._fragments = {name: FragmentDetails(definition) for name, definition in fragments.items()}
        self._operation = operation
        self._variables = variables
        self._values = VariableValues({}, dict(coerced))
        self._lines: list[str] = []
        self._names: dict[str, Any] = {}
        self._renderings: set[str] = set()
        self._used = self._fields = 0
        for function in (leaf, leaf_or_null, listed, present, Objects, Rendering, as_text):
            self._names[function.__name__] = function
        self.only_memberships = True

    def write(self) -> str:
        root = self._schema.get_root_type(self._operation.operation)
        assert root is not None
        grouped, *_ = collect_fields(self._schema, self._fragments, self._values, root, self._operation)
        # Those of a mutation happen one after the other.
        if self._operation.operation is not OperationType.QUERY and len(grouped) > 1:
            raise SurpriseError
        return self._function("r", f"return {self._object('r', root, grouped)}")

    def run(self) -> dict[str, Any]:
        # The names in it are ours, or GraphQL's, which cannot be anything else; everything else is named.
        exec(compile("\n".join(self._lines), "<compiled query>", "exec"), self._names)  # noqa: S102  # see above
        return self._names

    def _collected(self, type_: GraphQLObjectType, details: Details) -> Grouped:
        grouped, *_ = collect_subfields(self._schema, self._fragments, self._values, self._operation, type_, details)
        return grouped

    def _fields_of(self, type_: GraphQLObjectType, grouped: Grouped) -> Fields:
        self._fields += len(grouped)
        if self._fields > MOST_FIELDS:
            raise SurpriseError
        return {key: (_definition(type_, details[0].node), details) for key, details in grouped.items()}

    def _object(self, record: str, type_: GraphQLObjectType, grouped: Grouped) -> str:
        """An expression that makes the object of a record, which another expression gives."""
        fields = self._fields_of(type_, grouped)
        if _have_resolvers(fields):
            return f"{self._resolving(type_, fields)}({record}, run, v)"
        return self._plain_object(record, type_, fields)

    def _plain_object(self, record: str, type_: GraphQLObjectType, fields: Fields) -> str:
        made = ", ".join(f"{key!r}: {self._plain(record, type_, *field)}" for key, field in fields.items())
        # Reading an attribute of what is not there fails; where none is read, nobody would notice.
        read = any(definition is not None for definition, _ in fields.values())
        return f"{{{made}}}" if read else f"(present({record}) and {{{made}}})"

    def _resolving(self, type_: GraphQLObjectType, fields: Fields) -> str:
        """A function that makes an object some of whose fields have resolvers; its name.

        What has to be waited for leaves its place empty, and fills it when it is there.
        """
        made, calls = self._made(type_, fields)
        resolved = [f"run.resolve({called}, made, {key!r}, {completed}, v)" for key, called, completed in calls]
        return self._function("r", f"made = {made}", *resolved, "return made")

    def _resolving_all(self, type_: GraphQLObjectType, fields: Fields) -> str:
        """The same for a list of records: they are resolved together, field by field."""
        made, calls = self._made(type_, fields)
        if len(calls) == 1 and "run" not in made and calls[0][2] in self._renderings:
            return self._users(made, *calls[0])
        resolved = [
            f"run.resolve_all(lambda r: {called}, given, made, {key!r}, {completed}, v)"
            for key, called, completed in calls
        ]
        return self._function("given", f"made = [{made} for r in given]", *resolved, "return made")

    def _users(self, made: str, key: str, called: str, completed: str) -> str:
        """The same where all but one list depends on nothing but the record."""
        begin = self._function("r", f"return {made}")
        objects = self._unused("objects")
        self._lines.append(f"{objects} = Objects({begin}, {key!r}, {completed})")
        return self._function("given", f"return run.resolve_users(lambda r: {called}, given, {key!r}, {objects}, v)")

    def _made(self, type_: GraphQLObjectType, fields: Fields) -> tuple[str, list[tuple[str, str, str]]]:
        """An expression that makes the object of `r`; and of each field that it leaves empty the key, what resolves it
        and what completes that.
        """
        made, calls = [], []
        for key, (definition, details) in fields.items():
            if definition is None or _declared(definition).base_resolver is None:
                made.append(f"{key!r}: {self._plain('r', type_, definition, details)}")
            else:
                made.append(f"{key!r}: None")
                calls.append((key, self._call(definition, details[0].node), self._completing(definition.type, details)))
        return f"{{{', '.join(made)}}}", calls

    def _completing(self, type_: GraphQLOutputType, details: Details) -> str:
        """A function that completes what a resolver gave; its name."""
        value = self._value("given", type_, details)
        made = self._function("given", f"return {value}")
        # What depends on nothing but the list is the same each time (a name that only looks like it does no harm).
        if not isinstance(get_nullable_type(type_), GraphQLList) or "run" in value:
            return made
        name = self._unused("function")
        self._lines.append(f"{name} = Rendering({made})")
        self._renderings.add(name)
        return name

    def _plain(self, record: str, type_: GraphQLObjectType, definition: GraphQLField | None, details: Details) -> str:
        if definition is None:
            return repr(type_.name)
        declared = _declared(definition)
        if (instant := declared.metadata.get(INSTANT)) is not None:
            if isinstance(definition.type, GraphQLNonNull):
                return f"as_text({record}.{instant})"  # of what never comes there is none
            found = self._unused("found")
            return f"None if ({found} := {record}.{instant}) == {NEVER} else as_text({found})"
        return self._value(f"{record}.{declared.python_name}", definition.type, details)

    def _value(self, given: str, type_: GraphQLOutputType, details: Details) -> str:
        """An expression that completes what another one gives."""
        nullable = not isinstance(type_, GraphQLNonNull)
        inner = type_.of_type if isinstance(type_, GraphQLNonNull) else type_
        if is_leaf_type(inner):
            return self._leaf(given, inner, nullable=nullable)
        found = self._unused("found") if nullable else given
        if isinstance(inner, GraphQLList):
            completed = self._list(found, inner.of_type, details)
        elif isinstance(inner, GraphQLObjectType) and inner.is_type_of in (None, any_record):
            completed = self._object(found, inner, self._collected(inner, details))
        else:
            # Of an interface or a union only the record would tell what it is.
            raise SurpriseError
        return f"None if ({found} := {given}) is None else {completed}" if nullable else completed

    def _list(self, given: str, type_: GraphQLOutputType, details: Details) -> str:
        item = type_.of_type if isinstance(type_, GraphQLNonNull) else None
        each = self._unused("each")
        if not isinstance(item, GraphQLObjectType) or item.is_type_of not in (None, any_record):
            return f"[{self._value(each, type_, details)} for {each} in listed({given})]"
        fields = self._fields_of(item, self._collected(item, details))
        if _have_resolvers(fields):
            return f"{self._resolving_all(item, fields)}(listed({given}), run, v)"
        return f"[{self._plain_object(each, item, fields)} for {each} in listed({given})]"

    def _leaf(self, given: str, type_: GraphQLLeafType, *, nullable: bool) -> str:
        function = "leaf_or_null" if nullable else "leaf"
        serialize = self._named("serialize", type_.coerce_output_value)
        if isinstance(type_, GraphQLEnumType) and not nullable:
            return f"{self._named('names', _names(type_))}[{given}]"
        python = AS_IT_IS.get(type_.name)
        if python is None:
            return f"{function}({serialize}, {given})"
        found = self._unused("found")
        return f"{found} if type({found} := {given}) is {python} else {function}({serialize}, {found})"

    def _call(self, definition: GraphQLField, node: FieldNode) -> str:
        """An expression that calls a field's resolver."""
        declared = _declared(definition)
        resolver = declared.base_resolver
        assert resolver is not None
        if declared.extensions or resolver.self_parameter is not None or resolver.root_parameter is not None:
            raise SurpriseError
        function = declared.metadata[RESOLVER]
        if inspect.iscoroutinefunction(function):
            self.only_memberships = False
        given = list(arguments(definition, declared, node, self._variables, self._named, self._built))
        for parameter, value in ((resolver.parent_parameter, "r"), (resolver.info_parameter, "run")):
            if parameter is not None:
                given.append(f"{parameter.name}={value}")
        return f"{self._named('resolve', function)}({', '.join(given)})"

    def _function(self, parameter: str, *lines: str) -> str:
        name = self._unused("function")
        self._lines += [f"def {name}({parameter}, run, v):", *(f"    {line}" for line in lines)]
        return name

    def _named(self, hint: str, value: object) -> str:
        name = self._unused(hint)
        self._names[name] = value
        return name

    def _unused(self, hint: str) -> str:
        self._used += 1
        return f"{hint}_{self._used}"


def _definition(type_: GraphQLObjectType, node: FieldNode) -> GraphQLField | None:
    """None: it is `__typename`."""
    if node.name.value == "__typename":
        return None
    definition: GraphQLField | None = type_.fields.get(node.name.value)
    if definition is None:  # introspection
        raise SurpriseError
    return definition


def _have_resolvers(fields: Fields) -> bool:
    return any(definition is not None and _declared(definition).base_resolver for definition, _ in fields.values())


def _names(type_: GraphQLEnumType) -> dict[object, str]:
    """What the values of an enum are called in answers; of any other there is none."""
    values = [defined.value for defined in type_.values.values()]
    return {value: type_.coerce_output_value(value) for value in values}


def _declared(definition: GraphQLField) -> StrawberryField:
    declared = definition.extensions.get("strawberry-definition")
    if not isinstance(declared, StrawberryField):
        raise SurpriseError
    return declared
