"""Bars on stderr for what is being downloaded; nothing where nobody looks."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress import TransferSpeedColumn as SpeedColumn
from sive_adapters.progress import Progress


class DownloadBars:
    """A bar a file."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), SpeedColumn())
        self._bars = RichProgress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def told(self, progress: Progress) -> None:
        """Move the bar of a file."""
        if progress.what not in self._tasks:
            self._tasks[progress.what] = self._bars.add_task(progress.what, total=progress.total_bytes)
        task = self._tasks[progress.what]
        self._bars.update(task, completed=progress.done_bytes, total=progress.total_bytes)

    def say(self, line: str) -> None:
        """Print a line above the bars, on stderr."""
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
