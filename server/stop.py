"""Being told to stop, by SIGTERM or Ctrl-C."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nothing() -> None:
    pass


class Stop:
    """From its making on a signal is remembered, besides what it does at that moment; a second one is only remembered.

    Without the memory it could be lost: what a handler raises while Python forks is printed and dropped, and closing a
    connection can swallow a cancellation.
    """

    def __init__(self) -> None:
        # In the order in which they came.
        self.signals: list[int] = []
        self._act: Callable[[], object] = _nothing
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._receive)

    @property
    def told(self) -> bool:
        return bool(self.signals)

    @contextmanager
    def by(self, act: Callable[[], object]) -> Iterator[None]:
        """Within the block a signal also does this. Exits, with success, where the block begins or ends after one."""
        self._act = act
        try:
            self._exit_if_told()
            yield
        finally:
            self._act = _nothing
        self._exit_if_told()

    def _exit_if_told(self) -> None:
        if self.told:
            sys.exit(0)

    def _receive(self, received: int, _frame: object) -> None:
        self.signals.append(received)
        if len(self.signals) == 1:
            self._act()
