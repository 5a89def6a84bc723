"""Which processes there are."""

from pathlib import Path


def processes(place: Path) -> list[int]:
    """Those that work below a place; zombies do not."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(place):
                found.append(int(process.name))
        except OSError:
            continue
    return found
