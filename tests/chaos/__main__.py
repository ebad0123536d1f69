"""Play every fault against every way to ask, and print a scorecard; exit 1 when a cell is unexpected.

Examples:
  make chaos
  make chaos ARGS='--only stall'              every fault whose name has "stall" in it
  make chaos ARGS='--only "cut (FIN)" --at-once 1'
  make chaos ARGS=--list
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos.books import Books
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.scorecard import scorecard
from tests.chaos.stage import Result, Stage, stage


def main() -> int:
    """Parse, play, print."""
    asked = _arguments()
    faults = tuple(fault for fault in FAULTS if asked.only.lower() in fault.name.lower())
    if asked.list:
        print("\n".join(fault.name for fault in FAULTS))
        return 0
    if not faults:
        print(f"no fault has {asked.only!r} in its name: --list shows them", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 160)
    played = _played(faults, asked.at_once, console)
    scorecard(played.results, console)
    if played.books is None:
        return 130
    console.print(f"the gateway counted {played.books}")
    return 0 if played.books.add_up and all(result.is_expected for result in played.results) else 1


def _arguments() -> argparse.Namespace:
    about, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="make chaos",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="FAULT", help="faults whose name contains this")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="cells played at once")
    parser.add_argument("--list", action="store_true", help="the names of the faults")
    return parser.parse_args()


@dataclass(slots=True)
class Played:
    """The results in the table's order; no ``books`` when Ctrl-C came before the last."""

    results: list[Result]
    books: Books | None = None


def _played(faults: tuple[Fault, ...], at_once: int, console: Console) -> Played:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    played = Played([])
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sive-chaos-"))
        ready = stack.enter_context(stage(faults, Path(folder)))
        progress = stack.enter_context(Progress(*bar, console=console))
        task = progress.add_task("", total=len(ready.cells))
        for result in _each(ready, at_once):
            played.results.append(result)
            progress.update(task, advance=1, description=f"{result.cell.fault.name[:40]:40}")
        played.books = ready.books()
    rows = {fault.name: number for number, fault in enumerate(faults)}
    played.results.sort(key=lambda one: rows[one.cell.fault.name])
    return played


def _each(ready: Stage, at_once: int) -> Iterator[Result]:
    pool = ThreadPoolExecutor(at_once)
    try:
        left: set[Future[Result]] = {pool.submit(ready.play, cell) for cell in ready.cells}
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a caller who waits for ever is a finding; its thread must not hold this process
