"""The shape of the code and of the contract: rules that would decay without a check."""

import ast
import re
import subprocess
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT
from graphql import GraphQLEnumType, GraphQLInputObjectType, GraphQLInterfaceType, GraphQLObjectType, parse
from graphql.language import ObjectTypeDefinitionNode, print_ast

from schema.api import schema

PACKAGES = ("schema", "resolvers", "db", "jobs", "server")
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
TRACKED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.splitlines()


def test_the_printed_schema_is_current() -> None:
    assert (ROOT / "schema.graphql").read_text() == schema().as_str() + "\n"


def test_everything_in_the_contract_is_described() -> None:
    silent = []
    for name, type_ in schema()._schema.type_map.items():
        if name.startswith("__") or name in ("ID", "String", "Int", "Boolean", "Float"):
            continue
        described = {name: type_.description}
        if isinstance(type_, GraphQLEnumType):
            described |= {f"{name}.{value}": found.description for value, found in type_.values.items()}
        if isinstance(type_, GraphQLInputObjectType | GraphQLObjectType | GraphQLInterfaceType):
            described |= {f"{name}.{field}": found.description for field, found in type_.fields.items()}
        if isinstance(type_, GraphQLObjectType | GraphQLInterfaceType):
            described |= {
                f"{name}.{field}({argument}:)": found_argument.description
                for field, found in type_.fields.items()
                for argument, found_argument in found.args.items()
            }
        silent += [where for where, text in described.items() if not text]
    assert silent == []


def test_every_mutation_takes_a_key_and_answers_a_payload() -> None:
    document = parse((ROOT / "schema.graphql").read_text())
    types = {d.name.value: d for d in document.definitions if isinstance(d, ObjectTypeDefinitionNode)}
    for mutation in types["Mutation"].fields or ():
        arguments = {argument.name.value: print_ast(argument.type) for argument in mutation.arguments or ()}
        assert arguments["idempotencyKey"] == "String!"
        payload = types[print_ast(mutation.type).rstrip("!")]
        assert [interface.name.value for interface in payload.interfaces or ()] == ["MutationPayload"]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_provides_a_package_of_ours(package: str) -> None:
    assert set(packages_distributions().get(package, [])) <= {"segmentql"}


@pytest.mark.parametrize("package", [*PACKAGES])
def test_a_package_says_what_it_is_and_exports_nothing(package: str) -> None:
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_no_module_is_too_long_to_be_read() -> None:
    long = {
        str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 320
    }
    assert long == {}


def test_sql_is_written_in_db_alone() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {node.value[:40]!r}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != "db"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER) ", node.value)
    ]
    # Making a database for the embedded server is not a statement of the service.
    assert [line for line in found if not line.startswith("server/embedded.py: 'CREATE DATABASE")] == []


def test_nothing_that_is_committed_names_a_registry_or_a_place_on_this_machine() -> None:
    assert len(TRACKED) > 50
    names = re.compile(r"files\.pythonhosted\.org|pypi\.org|registry\.npmjs\.org|/(work|home|root)/[a-z]")
    for name in TRACKED:
        path = ROOT / name
        if path.suffix in (".js", ".css", ".png") or not path.is_file() or name == "tests/test_shape.py":
            continue
        assert not names.search(path.read_text(errors="replace")), name
