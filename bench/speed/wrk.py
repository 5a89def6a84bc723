"""One run of wrk: as fast as requests are answered on some connections, or at a rate that is the same for everybody."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, run

import typer

SCRIPT = Path(__file__).with_name("requests.lua")
CONNECTIONS = 32
# Enough that there is a free one whenever a request is due, unless the server has fallen behind by far.
PACED_CONNECTIONS = 128


@dataclass(frozen=True, slots=True)
class Run:
    requests: int
    seconds: float
    # In seconds, from when each was sent.
    p50: float
    p99: float
    # How often the file was begun again.
    wrapped: int


class FailedError(Exception):
    """Requests were refused, or not answered at all."""


def required() -> None:
    """End here, with the remedy, when there is no wrk."""
    if shutil.which("wrk") is None:
        typer.echo("wrk is not installed: `apt-get install wrk`, or your system's package of that name.", err=True)
        raise typer.Exit(2)


def load(url: str, requests: Path, seconds: float, headers: dict[str, str], rate: float | None = None) -> Run:
    """Send the requests of the file, and again from the first when they are through. Raises FailedError."""
    connections = CONNECTIONS if rate is None else PACED_CONNECTIONS
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s", "-s", str(SCRIPT)]
    for name, value in ({"Content-Type": "application/json"} | headers).items():
        command += ["-H", f"{name}: {value}"]
    command += [url, "--", str(requests)] + ([] if rate is None else [str(rate)])
    done = run(command, stdout=PIPE, check=True, text=True, timeout=seconds + 60)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["refused"] or found["broken"] or not found["requests"]:
        raise FailedError(f"of {found['requests']} requests {found['refused']} were refused, {found['broken']} broken")
    return Run(
        requests=found["requests"],
        seconds=found["microseconds"] / 1e6,
        p50=found["p50"] / 1e6,
        p99=found["p99"] / 1e6,
        wrapped=found["wrapped"],
    )
