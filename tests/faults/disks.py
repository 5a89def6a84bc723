"""File systems of a fixed size, in memory, which a fault can fill."""

import os
import subprocess
from pathlib import Path

from faults.stack import Stack

PIECE_BYTES = 64 * 1024


class Disk:
    def __init__(self, where: Path) -> None:
        self.where, self._filler = where, where / "filler"

    def fill(self, leaving: int = 0) -> None:
        """Leave so many bytes of it, or next to none."""
        with self._filler.open("wb", buffering=0) as filler:
            try:
                while self.free_bytes() > leaving:
                    filler.write(bytes(min(PIECE_BYTES, self.free_bytes() - leaving)))
            except OSError:
                return

    def make_room(self) -> None:
        self._filler.unlink()

    def free_bytes(self) -> int:
        found = os.statvfs(self.where)
        return found.f_bavail * found.f_frsize


def mounted(stack: Stack, where: Path, megabytes: int) -> Disk:
    """One in an empty folder, until everything ends, however that ends."""
    if os.geteuid() != 0:
        raise PermissionError("a disk that can be full is mounted for it, which only root may do: run this row as root")
    where.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "faults", where], check=True)
    # At once, and from whoever still uses it when that has ended.
    stack.ending.callback(_unmount, where)
    return Disk(where)


def _unmount(where: Path) -> None:
    subprocess.run(["umount", "--lazy", where], check=True)
