"""What callers are not told where the schema is not for them to see: any name that they have not said themselves."""

import json
import re
from collections.abc import Iterator

from graphql import GraphQLError
from strawberry.extensions import SchemaExtension
from strawberry.types import ExecutionContext

NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]*")
# graphql-core puts names, and types with their brackets, between these.
QUOTED = re.compile(r"'([^']*)'")
# What of a message stays: what the caller got wrong, and nothing of what would have been right.
KEPT = [
    (re.compile(r"(Cannot query field '\w+') on type .*", re.DOTALL), r"\1."),
    (re.compile(r"(Unknown argument '\w+') on .*", re.DOTALL), r"\1."),
    (re.compile(r"(Field '\w+') of type .* (must have a selection of subfields).*", re.DOTALL), r"\1 \2."),
    (re.compile(r"(Field '\w+' must not have a selection) since .*", re.DOTALL), r"\1."),
    (re.compile(r"(Variable '\$\w+') of type .* used in position expecting .*", re.DOTALL), r"\1 is not of that type."),
    (re.compile(r".*(Value '\w+' does not exist) in .*", re.DOTALL), r"\1."),
    (re.compile(r"Expected value of type .* not to include (unknown field '\w+').*", re.DOTALL), r"There is an \1."),
]
NOT_VALID = "This is not valid. What would be is not told, for introspection is off."


class Discretion(SchemaExtension):
    """Rewrites what graphql-core says of documents and variables. What we say ourselves names nothing unasked."""

    def on_operation(self) -> Iterator[None]:
        yield
        execution = self.execution_context
        errors = execution.pre_execution_errors or (execution.result.errors if execution.result else None) or []
        of_core = [error for error in errors if _is_of_core(error)]
        if of_core:
            said = _said(execution)
            for error in of_core:
                error.message = _discreet(error.message, said)


def _is_of_core(error: Exception) -> bool:
    return (
        isinstance(error, GraphQLError)
        and (error.original_error is None or isinstance(error.original_error, GraphQLError))
        and "code" not in (error.extensions or {})
    )


def _said(execution: ExecutionContext) -> set[str]:
    """Every name that is in the request."""
    variables = json.dumps(execution.variables, default=str) if execution.variables else ""
    return set(NAME.findall(execution.query or "")) | set(NAME.findall(variables))


def _discreet(message: str, said: set[str]) -> str:
    for pattern, kept in KEPT:
        if pattern.fullmatch(message):
            return pattern.sub(kept, message)
    named = {name for quoted in QUOTED.findall(message) for name in NAME.findall(quoted)}
    return message if named <= said and "Did you mean" not in message else NOT_VALID
