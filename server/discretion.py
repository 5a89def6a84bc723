"""What callers are not told where the schema is not for them to see: anything of it that they have not named there.

What graphql-core says passes only in sentences that are listed here: they are about the document alone, or repeat the
one name that is not in the schema. What a caller writes elsewhere, in a comment or a variable, changes no answer.
"""

import re
from collections.abc import Iterator

from graphql import GraphQLError, GraphQLSyntaxError
from strawberry.extensions import SchemaExtension

# What of a message stays is its group: what the caller got wrong, and nothing of what would have been right.
KEPT = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"(Cannot query field '\w+') on type .*",
        r"(Unknown argument '\w+') on .*",
        r"(Unknown fragment '\w+')\.",
        r"(Unknown directive '@\w+')\.",
        r"(Variable '\$\w+' has invalid (?:default )?value)\b.*",
        r"(Variable '\$\w+' is (?:not defined|never used)(?: (?:by|in) operation '\w+')?)\.",
        r"(Fragment '\w+' is never used)\.",
        r"(Cannot spread fragment '\w+' within itself(?: via [\w', ]+)?)\.",
        r"(There can be only one (?:argument|fragment|input field|operation|variable) named '\$?\w+')\.",
        r"(This anonymous operation must be the only defined operation)\.",
        r"(Fields '\w+' conflict because they have differing arguments)\. .*",
        r"(Fields '\w+' conflict because '\w+' and '\w+' are different fields)\. .*",
        r"(GraphQL introspection has been disabled), .*",
        r"(Too many validation errors, error limit reached\. Validation aborted)\.",
    )
]
NOT_VALID = "The document is not valid here."


class Discretion(SchemaExtension):
    """Rewrites what graphql-core says of documents and variables. What we say ourselves names nothing unasked."""

    def on_operation(self) -> Iterator[None]:
        yield
        execution = self.execution_context
        for error in execution.pre_execution_errors or (execution.result.errors if execution.result else None) or ():
            if _is_of_core(error):
                error.message = discreet(error.message)


def _is_of_core(error: Exception) -> bool:
    return (
        isinstance(error, GraphQLError)
        and not isinstance(error, GraphQLSyntaxError)
        and (error.original_error is None or isinstance(error.original_error, GraphQLError))
        and "code" not in (error.extensions or {})
    )


def discreet(message: str) -> str:
    for pattern in KEPT:
        if kept := pattern.fullmatch(message):
            return f"{kept[1]}."
    return NOT_VALID
