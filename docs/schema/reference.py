"""Prints docs/reference.md: every type, field, argument and value of schema.graphql, with what is said of it there."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from graphql import (
    DefinitionNode,
    EnumTypeDefinitionNode,
    EnumValueDefinitionNode,
    FieldDefinitionNode,
    InputObjectTypeDefinitionNode,
    InputValueDefinitionNode,
    InterfaceTypeDefinitionNode,
    ListTypeNode,
    NamedTypeNode,
    NonNullTypeNode,
    ObjectTypeDefinitionNode,
    ScalarTypeDefinitionNode,
    TypeNode,
    UnionTypeDefinitionNode,
    parse,
    print_ast,
)

SCHEMA = Path(__file__).parents[2] / "schema.graphql"
HEAD = """# Reference

Every query, mutation and type of the GraphQL API, from [schema.graphql](../schema.graphql) (`make reference` writes
this page). `!` stands for what is never null. Scalars without a link are GraphQL's own. What changes when, and what
does not, is in the [changelog of the contract](contract-changelog.md).
"""
ROOTS = {"Query": "Queries", "Mutation": "Mutations", "Subscription": "Subscriptions"}
KINDS: dict[type[DefinitionNode], str] = {
    ObjectTypeDefinitionNode: "Objects",
    InterfaceTypeDefinitionNode: "Interfaces",
    UnionTypeDefinitionNode: "Unions",
    InputObjectTypeDefinitionNode: "Inputs",
    EnumTypeDefinitionNode: "Enums",
    ScalarTypeDefinitionNode: "Scalars",
}
Type = (
    ObjectTypeDefinitionNode
    | InterfaceTypeDefinitionNode
    | UnionTypeDefinitionNode
    | InputObjectTypeDefinitionNode
    | EnumTypeDefinitionNode
    | ScalarTypeDefinitionNode
)
Member = FieldDefinitionNode | InputValueDefinitionNode | EnumValueDefinitionNode


def page(text: str) -> str:
    types = {each.name.value: each for each in parse(text).definitions if isinstance(each, Type)}
    links = {name: ROOTS.get(name, name).lower() for name in types}
    sections = [_root(types[name], title, links) for name, title in ROOTS.items() if name in types]
    for kind, title in KINDS.items():
        found = [each for name, each in types.items() if type(each) is kind and name not in ROOTS]
        if found:
            sections.append("\n\n".join([f"## {title}", *(_type(each, links) for each in found)]))
    return "\n\n".join([HEAD.rstrip(), *sections]) + "\n"


def _root(type_: Type, title: str, links: dict[str, str]) -> str:
    return "\n\n".join([f"## {title}", *_body(type_, links)])


def _type(type_: Type, links: dict[str, str]) -> str:
    return "\n\n".join([f"### {type_.name.value}", *_body(type_, links)])


def _body(type_: Type, links: dict[str, str]) -> Iterator[str]:
    if type_.description:
        yield _prose(type_.description.value)
    if interfaces := getattr(type_, "interfaces", ()):
        yield f"Implements {', '.join(_reference(each, links) for each in interfaces)}."
    if isinstance(type_, UnionTypeDefinitionNode):
        yield f"One of {', '.join(_reference(each, links) for each in type_.types or ())}."
    if any(directive.name.value == "oneOf" for directive in type_.directives or ()):
        yield "Exactly one of the fields is given."
    members: Iterable[Member] = getattr(type_, "values", None) or getattr(type_, "fields", None) or ()
    if lines := [line for member in members for line in _member(member, links)]:
        yield "\n".join(lines)


def _member(member: Member, links: dict[str, str], indent: str = "") -> Iterator[str]:
    said = f"{indent}- `{member.name.value}`"
    if not isinstance(member, EnumValueDefinitionNode):
        said += f" {_reference(member.type, links)}"
    if isinstance(member, InputValueDefinitionNode) and member.default_value is not None:
        said += f", by default `{print_ast(member.default_value)}`"
    if member.description:
        said += f": {_prose(member.description.value)}"
    yield said
    for directive in member.directives or ():
        if directive.name.value == "deprecated":
            why = " ".join(print_ast(argument.value).strip('"') for argument in directive.arguments or ())
            yield f"{indent}  **Deprecated.** {why}"
    if isinstance(member, FieldDefinitionNode):
        for argument in member.arguments or ():
            yield from _member(argument, links, f"{indent}  ")


def _reference(type_: TypeNode, links: dict[str, str]) -> str:
    if isinstance(type_, NonNullTypeNode):
        return f"{_reference(type_.type, links)}!"
    if isinstance(type_, ListTypeNode):
        return rf"\[{_reference(type_.type, links)}\]"
    assert isinstance(type_, NamedTypeNode)
    name = type_.name.value
    return f"[{name}](#{links[name]})" if name in links else name


def _prose(text: str) -> str:
    """A description as one line. That it is Markdown GraphQL says of it."""
    return " ".join(text.split())


if __name__ == "__main__":
    print(page(SCHEMA.read_text()), end="")
