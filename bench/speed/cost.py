"""What a server takes: CPU time and memory of its process and of all that came from it."""

import os
from collections.abc import Iterable
from pathlib import Path

from bench.memory import Memory

TICK = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and its descendants that are there."""
    found = [pid]
    for each in found:
        found += children(each)
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these and all that came from them have used so far, and the kernel on their behalf."""
    # The name may contain anything; what follows it does not. Whoever has ended is counted with its parent.
    stats = [_text(Path(f"/proc/{each}/stat")).rpartition(")")[2].split() for pid in pids for each in tree(pid)]
    return sum(int(ticks) for stat in stats for ticks in stat[11:15]) / TICK


def megabytes(pid: int) -> float:
    """Of the process and all that came from it. What is shared between several, each counts its part of."""
    return sum(Memory.of(each).proportional for each in tree(pid))


def children(pid: int) -> list[int]:
    """Those that are there."""
    listed = [_text(path) for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for each in listed for child in each.split()]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
