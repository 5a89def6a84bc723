"""What a person sees while a command works: on standard error, so that what is printed stays fit for a pipe."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from server.client import Json


class Bars:
    """Bars for somebody who watches; a log gets only what is said."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Done(), TimeElapsedColumn())
        self._progress = Progress(
            *columns,
            console=self._console,
            disable=not self._console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Before something is printed."""
        self._progress.stop()

    def say(self, what: str) -> None:
        self._console.print(f"segmentql: {what}", markup=False, highlight=False, soft_wrap=True)

    def of_bytes(self, what: str, total: int) -> Callable[[int], None]:
        """Takes how many bytes are there by now; fewer than before when it begins again."""
        self._progress.start()
        bar = self._progress.add_task(what, total=total, rows=None)
        last = 0

        def show(done: int) -> None:
            nonlocal last
            if done < last:
                self._progress.reset(bar)
            last = done
            self._progress.update(bar, completed=done)

        return show

    def of_task(self, what: str) -> Callable[[Json], None]:
        """Takes the task as it is by now."""
        self._progress.start()
        bar = self._progress.add_task(what, total=None, rows=0)

        def show(task: Json) -> None:
            waits = " (waits for a worker)" if task["status"] == "QUEUED" else ""
            done = 1.0 if task["status"] == "SUCCEEDED" else task["progress"]
            self._progress.update(
                bar,
                description=what + waits,
                total=None if done is None else 1,
                completed=done or 0,
                rows=task["rowsDone"],
            )

        return show


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class _Done(ProgressColumn):
    """Bytes of all, and how fast they come; or rows."""

    def render(self, task: Task) -> Text:
        if task.fields["rows"] is not None:
            return Text(counted(task.fields["rows"], "row"))
        speed = task.finished_speed or task.speed
        rate = f", {decimal(int(speed))}/s" if speed else ""
        return Text(f"{decimal(int(task.completed))} of {decimal(int(task.total or 0))}{rate}")
