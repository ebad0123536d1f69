"""When Python looks for garbage in cycles: in small steps while requests run, in one go when none does."""

import asyncio
import gc
from collections.abc import Callable

STEP, STEPS = 2_000, 5
"""New objects until the youngest are looked at, which takes 1 ms, and how often before those that survived
are, which takes 3. A request makes hundreds of objects that die with it and are never looked at."""

NEVER = 1_000_000
QUIET_S, LONGEST_S = 60.0, 600.0


def collect_rarely() -> None:
    """Leave what start-up made alone for good, and never look at everything while requests wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(STEP, STEPS, NEVER)


async def tidy(is_busy: Callable[[], bool]) -> None:
    """Look at everything once a minute when there is nothing to do, and every ten minutes whatever there is.

    With thousands of answers under way that takes 20 ms, which would be in the middle of somebody's.
    """
    waited_s = 0.0
    while True:
        await asyncio.sleep(QUIET_S)
        waited_s += QUIET_S
        if not is_busy() or waited_s >= LONGEST_S:
            gc.collect()
            waited_s = 0.0
