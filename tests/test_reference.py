"""The schema as others see it: its reference is current, says everything, and what was released still holds."""

import re
import subprocess
import sys
from pathlib import Path

from graphql import (
    BreakingChange,
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLNamedType,
    GraphQLObjectType,
    build_schema,
    find_breaking_changes,
)

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs/reference.md").read_text()
CHANGELOG = (ROOT / "docs/contract-changelog.md").read_text()
RELEASED = build_schema((ROOT / "docs/schema/released.graphql").read_text())
SCHEMA = build_schema((ROOT / "schema.graphql").read_text())
ROOTS = ("Query", "Mutation", "Subscription")


def written() -> str:
    command = [sys.executable, "-I", str(ROOT / "docs/schema/reference.py")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_reference_is_current() -> None:
    assert written() == REFERENCE, "make reference"


def test_every_link_of_the_reference_leads_somewhere() -> None:
    anchors = {heading.strip().lower() for heading in re.findall(r"^#+ (.*)$", REFERENCE, re.MULTILINE)}
    links = set(re.findall(r"\]\(#([^)]*)\)", REFERENCE))
    assert len(links) > 30
    assert links <= anchors
    files = set(re.findall(r"\]\(([^#)][^)]*)\)", REFERENCE))
    assert all((ROOT / "docs" / file).is_file() for file in files), files


def test_everything_in_the_schema_is_in_the_reference() -> None:
    ours = {name: type_ for name, type_ in SCHEMA.type_map.items() if not is_of_graphql(type_)}
    for name in ours:
        assert name in ROOTS or f"\n### {name}\n" in REFERENCE, name
    for type_ in ours.values():
        for field in members(type_):
            assert f"\n- `{field}`" in REFERENCE, f"{type_.name}.{field}"


def test_nothing_that_was_released_is_broken() -> None:
    assert breaking(RELEASED, SCHEMA) == []


def test_what_breaks_clients_is_noticed() -> None:
    text = (ROOT / "docs/schema/released.graphql").read_text()
    for before, after in (("type UserError {", "type Mistake {"), ("  slug: String!\n", "  slug: String\n")):
        changed = build_schema(text.replace(before, after).replace("[UserError!]!", "[String!]!"))
        assert breaking(RELEASED, changed) != []


def test_the_changelog_names_every_operation_that_is_new() -> None:
    unreleased = CHANGELOG.partition("## Unreleased")[2].partition("\n## ")[0]
    for name in ROOTS:
        before, after = RELEASED.type_map.get(name), SCHEMA.type_map.get(name)
        for field in (set(members(after)) if after else set()) - (set(members(before)) if before else set()):
            assert f"`{name}.{field}`" in unreleased, field


def breaking(before: object, after: object) -> list[BreakingChange]:
    return list(find_breaking_changes(before, after))  # type: ignore[arg-type]  # schemas both


def is_of_graphql(type_: GraphQLNamedType) -> bool:
    return type_.name.startswith("__") or type_.name in ("String", "ID", "Int", "Float", "Boolean")


def members(type_: GraphQLNamedType) -> list[str]:
    if isinstance(type_, GraphQLEnumType):
        return list(type_.values)
    return list(type_.fields) if isinstance(type_, GraphQLObjectType | GraphQLInputObjectType) else []
