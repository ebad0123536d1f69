"""When everything is looked at for garbage: real cycles, which die only when somebody looks."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
from sive_serve import garbage

ROUND_S = 2.0**-20
ROUNDS = 10
"""So often it waits, at the longest."""


class Cycle:
    """Nobody holds it but itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def only_tidy_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python does not look by itself, and a minute takes no time."""
    monkeypatch.setattr(garbage, "QUIET_S", ROUND_S)
    monkeypatch.setattr(garbage, "LONGEST_S", ROUNDS * ROUND_S)
    gc.disable()
    yield
    gc.enable()


def deaths(is_busy: Callable[[int], bool], *, rounds: int) -> list[int]:
    """The rounds in which a cycle was found dead; another one takes its place."""

    async def main() -> list[int]:
        found, asked, over = list[int](), 0, asyncio.Event()
        cycle = weakref.ref(Cycle())

        def asks() -> bool:
            nonlocal asked, cycle
            asked += 1
            if cycle() is None:
                found.append(asked)
                cycle = weakref.ref(Cycle())
            if asked == rounds:
                over.set()
            return is_busy(asked)

        async with asyncio.timeout(10):
            tidying = asyncio.create_task(garbage.tidy(asks))
            await over.wait()
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
        return found

    return asyncio.run(main())


def test_garbage_is_collected_whenever_nothing_runs() -> None:
    """Every round, not once."""
    assert deaths(lambda number: False, rounds=4) == [2, 3, 4]


def test_garbage_waits_while_something_runs_but_not_for_ever() -> None:
    """After the longest wait it is collected in the middle of it, and the wait begins anew."""
    assert deaths(lambda number: True, rounds=3 * ROUNDS + 1) == [ROUNDS + 1, 2 * ROUNDS + 1, 3 * ROUNDS + 1]


def test_a_quiet_moment_begins_the_wait_anew() -> None:
    """What was collected in it need not be looked at soon again."""
    assert deaths(lambda number: number != 5, rounds=5 + ROUNDS + 1) == [6, 5 + ROUNDS + 1]
