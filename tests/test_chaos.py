"""Every fault of `make chaos`, each as one test: what all four callers get from it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.stage import Result, Stage, stage


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """All hosts and one gateway."""
    with stage(FAULTS, tmp_path_factory.mktemp("chaos")) as everything:
        yield everything


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_caller_gets_what_the_table_says(ready: Stage, fault: Fault) -> None:
    """Both drop-ins, the gateway's streams and its JSON; a second backend next, and only the CPU."""
    mine = [cell for cell in ready.cells if cell.fault is fault]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ready.play, mine))
    assert not [_told(result) for result in results if not result.is_expected]


def test_the_books_add_up(ready: Stage) -> None:
    """After all that, every cut that the gateway counted was mended or told, and none twice."""
    assert ready.books().add_up, str(ready.books())


def _told(result: Result) -> str:
    where = f"{result.cell.caller}{', CPU' if result.cell.alone else ''}"
    got = f"expected {result.expected}, got {result.outcome.kind}: {result.outcome.why}"
    return "\n".join([f"{where}: {got}", *result.log])
