"""Clocks that are wrong, by libfaketime: a process's own, or PostgreSQL's."""

from pathlib import Path

LIBRARY = "libfaketime.so.1"
# Where distributions put it, whatever the machine is.
PLACES = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")
# What it shares between the threads of a process, by the process's number.
KEPT = ("faketime_shm_*", "sem.faketime_sem_*")


def library() -> Path:
    """Raises where it is missing, with the remedy."""
    for place in PLACES:
        for found in Path("/").glob(f"{place[1:]}/{LIBRARY}"):
            return found
    raise RuntimeError(f"{LIBRARY} is not installed, so no clock can be wrong: apt-get install faketime")


def ahead(seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is so many seconds ahead; what counts seconds only is not."""
    return _preloaded() | {"FAKETIME": f"{seconds:+d}"}


class Clock:
    """A clock that can be set while its process runs."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.environ = _preloaded() | {"FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1"}

    @property
    def ahead(self) -> int:
        """By how many seconds, of the machine's clock."""
        return int(self._file.read_text())

    def set(self, ahead: int) -> None:
        written = self._file.with_suffix(".new")
        written.write_text(f"{ahead:+d}\n")
        written.replace(self._file)

    def step(self, seconds: int) -> None:
        self.set(self.ahead + seconds)


def _preloaded() -> dict[str, str]:
    _tidy()
    return {"LD_PRELOAD": str(library()), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}


def _tidy() -> None:
    """Remove what processes have left that were killed: whoever got their number could not begin."""
    for kept in (each for pattern in KEPT for each in Path("/dev/shm").glob(pattern)):
        if not Path("/proc", kept.name.rpartition("_")[2]).exists():
            kept.unlink(missing_ok=True)
