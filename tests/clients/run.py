"""Runs the programs of clients that others have made against a server of its own, and prints what each has shown.

Run by `make clients`: python tests/clients/run.py PYTHON, the last being the one that has ariadne-codegen.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from running import Server, serving

HERE = Path(__file__).parent
NODE, PYTHON = HERE / "node", HERE / "python"
TOOLS = NODE / "node_modules" / ".bin"
# Together they take half a minute on two cores: one that has not ended by then never will.
SECONDS = 120
# What the newest of these clients still run on.
OLDEST_NODE = 20


class Program(NamedTuple):
    client: str
    version: str
    folder: Path
    # One after the other; the last one speaks to the server.
    commands: list[list[str]]


class Outcome(NamedTuple):
    shown: list[str]
    seconds: float
    # What it has printed when something has failed, else empty.
    wrong: str


def main(ariadne: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    programs = [*of_python(ariadne), *of_node(console)]
    # As it is for front ends: more processes than one, and nobody served without a token.
    settings = {"WORKERS": "2", "AUTHENTICATION": "required"}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), **settings) as server:
        token, began = server.new_token(), time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = list(pool.map(lambda program: run(program, server, token), programs))
        seconds = time.monotonic() - began
        complaints = server.complaints()
    console.print(table(programs, outcomes))
    for program, outcome in zip(programs, outcomes, strict=True):
        if outcome.wrong:
            console.print(f"\n{program.client}:\n{outcome.wrong}", markup=False, highlight=False)
    if complaints:
        console.print(f"\nThe server has logged errors:\n{complaints}", markup=False, highlight=False)
    if stale := undocumented(programs):
        console.print(f"\ndocs/clients.md does not say which version was tried of: {', '.join(stale)}")
    red = sum(bool(outcome.wrong) for outcome in outcomes)
    console.print(f"{len(programs) - red} of {len(programs)} clients in {seconds:.0f} s")
    sys.exit(1 if red or complaints or stale else 0)


def of_python(ariadne: str) -> list[Program]:
    ask = "from importlib.metadata import version; print(version('ariadne-codegen'))"
    version = subprocess.run([ariadne, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    return [
        Program("gql", metadata.version("gql"), PYTHON, [[sys.executable, "by_gql.py"]]),
        Program("ariadne-codegen", version, PYTHON, [[ariadne, "by_ariadne.py"]]),
    ]


def of_node(console: Console) -> list[Program]:
    """The programs for Node; without npm none, which is said, and is a failure in CI."""
    if missing := without_node():
        if os.environ.get("CI"):
            sys.exit(missing)
        console.print(f"{missing} Only the clients for Python are run.")
        return []
    relay, codegen = NODE / "relay", NODE / "codegen"
    (relay / "generated").mkdir(exist_ok=True)
    compiled = [str(TOOLS / "relay-compiler"), "relay.config.json"]
    generated = [str(TOOLS / "graphql-codegen"), "--config", "codegen.json"]
    checked = [str(TOOLS / "tsc"), "--project", "tsconfig.json"]
    # Those that take longest come first.
    return [
        of_package(
            "GraphQL Code Generator",
            "@graphql-codegen/cli",
            codegen,
            generated,
            checked,
            node("generated/built/main.js"),
        ),
        of_package("Apollo Client", "@apollo/client", NODE, node("apollo.mjs")),
        of_package("Relay", "relay-runtime", relay, compiled, node("main.mjs")),
        of_package("urql", "@urql/core", NODE, node("urql.mjs")),
        *(
            of_package(name, name, NODE, node(f"{name}.mjs"))
            for name in ("graphql-sse", "graphql-ws", "graphql-request")
        ),
    ]


def without_node() -> str:
    """Why clients for Node cannot run, else nothing."""
    if not (shutil.which("npm") and shutil.which("node")):
        return "Node and npm are missing."
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        return f"Node {OLDEST_NODE} or newer is needed, and this is {version}."
    return ""


def node(program: str) -> list[str]:
    return ["node", program]


def of_package(client: str, package: str, folder: Path, *commands: list[str]) -> Program:
    version = json.loads((NODE / "node_modules" / package / "package.json").read_text())["version"]
    return Program(client, version, folder, list(commands))


def run(program: Program, server: Server, token: str) -> Outcome:
    began = time.monotonic()
    environ = os.environ | {"SEGMENTQL_URL": f"{server.url}/graphql", "SEGMENTQL_TOKEN": token}
    shown, wrong = [], ""
    for command in program.commands:
        try:
            done = subprocess.run(
                command, cwd=program.folder, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as late:
            wrong = f"{' '.join(command)} has not ended after {SECONDS} s\n{late.stdout!r}\n{late.stderr!r}"
            break
        # Compilers tell of their progress: what was shown is said by the last one.
        shown = done.stdout.splitlines() if command is program.commands[-1] else []
        if done.returncode:
            wrong = f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
            break
    return Outcome(shown, time.monotonic() - began, wrong)


def undocumented(programs: list[Program]) -> list[str]:
    lines = (HERE.parents[1] / "docs" / "clients.md").read_text().splitlines()
    return [
        program.client
        for program in programs
        if not any(line.startswith(f"| [{program.client}]") and f"| {program.version}" in line for line in lines)
    ]


def table(programs: list[Program], outcomes: list[Outcome]) -> Table:
    made = Table("client", "version", "what was shown")
    made.add_column("seconds", justify="right")
    made.add_column("")
    for program, outcome in zip(programs, outcomes, strict=True):
        colour = "[red]red[/red]" if outcome.wrong else "[green]green[/green]"
        made.add_row(program.client, program.version, ", ".join(outcome.shown), f"{outcome.seconds:.1f}", colour)
    return made


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).absolute()))
