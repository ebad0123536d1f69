"""Where scenes are played: the hosts, one gateway for all of them, a folder."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.books import Books, read_books
from tests.chaos.callers import Callers
from tests.chaos.faults import Fault
from tests.chaos.outcome import Outcome, judge
from tests.chaos.scene import Cell, Scene, cells, config, staged
from tests.conftest import Served, clean_environment, launch
from tests.lab.hosts import Hosts
from tests.lab.manners import speaks


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a cell: its worst outcome, most attempts and longest time, and the log of the worst."""

    cell: Cell
    outcome: Outcome
    attempts: int
    seconds: float
    log: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What should have become of it."""
        stream = self.cell.caller != "gateway JSON"
        return self.cell.fault.expected(stream=stream, alone=self.cell.alone)

    @property
    def is_expected(self) -> bool:
        """Did it?"""
        return self.outcome.matches(self.expected)


@dataclass(frozen=True, slots=True)
class Stage:
    """The cells of some faults, ready to be played in any order and at once."""

    cells: list[Cell]
    callers: Callers
    gateway: Served

    def books(self) -> Books:
        """What the gateway counted so far."""
        return read_books(self.gateway.get("/metrics").text)

    def play(self, cell: Cell) -> Result:
        """Ask in every scene of a cell; the first unexpected outcome is the cell's."""
        results = [result for scene in cell.scenes for result in self._play(cell, scene)]
        worst = next((result for result in results if not result.is_expected), results[0])
        attempts, seconds = max(one.attempts for one in results), max(one.seconds for one in results)
        return Result(cell, worst.outcome, attempts, seconds, worst.log)

    def _play(self, cell: Cell, scene: Scene) -> Iterator[Result]:
        before = 0
        for _ in range(scene.fault.times):
            got = self.callers.ask(scene)
            asked = scene.asked
            outcome = judge(got, scene.fault, scene.name, seed=scene.drawn_seed)
            attempts, before = len(asked) - before, len(asked)
            outcome = _frugal(outcome, scene, attempts)
            log = tuple(one.line(asked[0].at) for one in asked)
            yield Result(cell, outcome, attempts, got.seconds, (f"scene {scene.name}", *log))


def _frugal(outcome: Outcome, scene: Scene, attempts: int) -> Outcome:
    """An answer that took more attempts than it may, or missed the fault, is wrong, however good."""
    if scene.primary is not None and not scene.primary.seen:
        return Outcome("WRONG", f"the first host was never asked: nothing was tested; {outcome.why}")
    if attempts > scene.fault.attempts:
        return Outcome("WRONG", f"{attempts} attempts, at most {scene.fault.attempts}; {outcome.why}")
    if scene.fault.spares and scene.second is not None and scene.second.seen:
        return Outcome("WRONG", f"the second host was asked for nothing; {outcome.why}")
    return outcome


@contextlib.contextmanager
def stage(faults: tuple[Fault, ...], folder: Path) -> Iterator[Stage]:
    """Start everything; the environment of this process is made a clean one meanwhile, for the drop-ins."""
    with _environment(folder), Hosts() as hosts:
        # The first request of a process pays for its imports and its certificates: nobody's first token.
        warm = list(staged(hosts, (Fault("warm up", (speaks(),)),), prefix="warm"))
        scenes = list(staged(hosts, faults))
        toml = folder / "sdk.toml"
        toml.write_text(config([scene for scene in warm + scenes if not scene.is_of_gateway]))
        through = config([scene for scene in warm + scenes if scene.is_of_gateway])
        with launch(folder, through) as served, Callers(toml, served.url) as callers:
            for scene in warm:
                callers.ask(scene)
            yield Stage(cells(scenes), callers, served)


@contextlib.contextmanager
def _environment(home: Path) -> Iterator[None]:
    before = dict(os.environ)
    clean = clean_environment(HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    os.environ.clear()
    os.environ.update(clean)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
