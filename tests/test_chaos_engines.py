"""`make chaos-engines` in small: a death, a freeze and a goodbye of the primary, and many callers at once."""

import signal
from collections.abc import Iterator

import pytest

from tests.chaos_engines import crowd, strikes
from tests.chaos_engines.stage import Scorecard, Stage, running_stage
from tests.chaos_engines.strikes import Strike
from tests.lab.engines import VLLM

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(500),
    pytest.mark.skipif(not VLLM.is_file(), reason="no vLLM here: make engine"),
]

POSITIONS = 2
CROWD_S = 20


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two engines for the whole file."""
    with running_stage(tmp_path_factory.mktemp("stage"), Scorecard()) as running:
        yield running


@pytest.mark.parametrize(
    "blow",
    [
        Strike(signal.SIGSTOP, "worker"),
        Strike(signal.SIGKILL, "core"),
        Strike(signal.SIGTERM, "api"),
    ],
    ids=lambda blow: blow.name,
)
def test_no_caller_notices_a_signal_to_the_primary(stage: Stage, blow: Strike) -> None:
    """The answers that run are the uncut ones, and the primary is used again soon after it is healthy."""
    wrong = strikes.strike(stage, blow, POSITIONS, strikes.oracle(stage))
    if wrong:  # two engines starve each other on two cores: once may be an accident, twice is none
        wrong = strikes.strike(stage, blow, POSITIONS, strikes.oracle(stage))
    assert wrong == []


def test_no_caller_of_many_notices_a_death(stage: Stage) -> None:
    """32 at once while the primary's engine is killed: no failure, no wrong byte, counters that add up."""
    assert crowd.run(stage, CROWD_S, returns=False) == []
