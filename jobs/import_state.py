"""How far an import has come, and what became of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from db.imports import Applied


@dataclass(slots=True)
class State:
    """How far an import has come, as the task's row keeps it."""

    # By the database's clock: from when on days count, and what is past.
    begin: str
    # Of the file, without its compression: bytes and lines that are read; the last of these whose reject is kept.
    taken: int = 0
    lines: int = 0
    recorded: int = 0
    columns: Sequence[str] = ("user_id",)
    header: bool = False
    # Rows that this has given, without those of users that an earlier one has.
    rows: int = 0
    # All of it is read; at least once, if it had to be read again.
    read: bool = False
    read_once: bool = False
    # The user up to whom it is applied, and the one before: the cache may not have been told of those between.
    after: str = ""
    before: str = ""
    # All of them are.
    applied: bool = False
    # From 0 to 1.
    progress: float = 0.0
    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    duplicate: int = 0
    invalid: int = 0

    def count(self, applied: Applied) -> None:
        self.added += applied.added
        self.updated += applied.updated
        self.removed += applied.removed
        self.unchanged += applied.unchanged
        self.invalid += applied.invalid

    def done(self, *, listed_removed: bool) -> int:
        """How many lines it is known of what becomes of them."""
        removed = self.removed if listed_removed else 0
        return self.added + self.updated + removed + self.unchanged + self.duplicate + self.invalid
