"""How much memory a process takes, and at most took while something went on."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Memory:
    """In MB. What is shared with others counts wholly as resident, and proportionally."""

    resident: float
    proportional: float

    @classmethod
    def of(cls, pid: int) -> Self:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return cls(*(_kilobytes(rollup, name) / 1024 for name in ("Rss", "Pss")))


@dataclass(slots=True)
class Growth:
    before: Memory
    resident: float = 0.0
    proportional: float = 0.0
    samples: int = 0

    def see(self, now: Memory) -> None:
        self.resident = max(self.resident, now.resident - self.before.resident)
        self.proportional = max(self.proportional, now.proportional - self.before.proportional)
        self.samples += 1


@contextmanager
def growing(pid: int) -> Iterator[Growth]:
    """What the process takes at most, while the block lasts, beyond what it takes now."""
    growth, ended = Growth(Memory.of(pid)), threading.Event()

    def watch() -> None:
        while not ended.wait(PAUSE_SECONDS):
            growth.see(Memory.of(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield growth
    finally:
        ended.set()
        watcher.join()


def _kilobytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1])
