"""Schemathesis against a server of its own: thousands of requests drawn from the schema, and nothing of them may fail.

Run by `make contract` and `make fuzz-schema`: PYTHONPATH=tests/clients python tests/contract/fuzz.py SCHEMATHESIS CASES
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from running import serving

HERE = Path(__file__).parent
RUN_SECONDS = 900
# Each request may ask for as much as it likes, and all come from one address.
SETTINGS = {"RATE_LIMIT": "0", "SERVE_TASKS": "1"}
# Below that a second process takes longer to start than it saves.
ALONE = 1_000
CASES = re.compile(r"(\d+) generated")
CREATE = 'mutation { createSegment(input: {slug: "%s"}, idempotencyKey: "fuzz-create-%s") { replayed } }'


def main(schemathesis: str, cases: int) -> None:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), **SETTINGS) as server:
        url, began = server.url, time.monotonic()
        operations = prepare(url)
        processes = 1 if cases < ALONE else os.cpu_count() or 1
        each = -(-cases // (operations * processes))
        running = [start(schemathesis, url, Path(folder) / str(number), each, number) for number in range(processes)]
        try:
            outputs = [process.communicate(timeout=RUN_SECONDS)[0] for process in running]
        finally:
            for process in running:
                process.kill()  # without effect on those that have ended
        seconds = time.monotonic() - began
        for process, output in zip(running, outputs, strict=True):
            if process.returncode:
                print(output)
                raise SystemExit("Schemathesis has found something")
        if complaints := server.complaints():
            print(complaints)
            raise SystemExit("Something has failed: see the log above")
        found = sum(int(count[1]) for output in outputs if (count := CASES.search(output)))
        if found < cases:
            raise SystemExit(f"Only {found} of {cases} requests were sent")
        print(f"Schemathesis: {found} requests of {operations} operations in {seconds:.0f} s, and nothing failed")


def start(schemathesis: str, url: str, folder: Path, each: int, number: int) -> subprocess.Popen[str]:
    """Begin to send so many requests of each operation: the same ones each time, but other ones for each number."""
    folder.mkdir()
    options = ["--phases", "fuzzing", "--checks", "answered", "--max-examples", str(each), "--seed", str(number + 1)]
    command = [schemathesis, "--no-color", "run", f"{url}/graphql", "--generation-database", "none", *options]
    environ = os.environ | {"SCHEMATHESIS_HOOKS": str(HERE / "checks.py")}
    return subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def prepare(url: str) -> int:
    """Have something to ask for; returns how many queries and mutations there are."""
    with httpx.Client(base_url=url) as http:
        for slug in "ABCDEFGH":
            http.post("/graphql", json={"query": CREATE % (slug, slug)}).raise_for_status()
        query = "{ __schema { queryType { fields { name } } mutationType { fields { name } } } }"
        found = http.post("/graphql", json={"query": query}).json()["data"]["__schema"]
    return len(found["queryType"]["fields"]) + len(found["mutationType"]["fields"])


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).absolute()), int(sys.argv[2]))
