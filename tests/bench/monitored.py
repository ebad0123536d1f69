"""`sive serve` whose event loop is timed: `python -P monitored.py REPORT serve ...`, or `REPORT idle`.

A timer asks to be called every millisecond and notes how late it is. On SIGUSR1 what was seen since the
last one goes into the file REPORT, and it begins anew. `idle` is a loop that has nothing else to do.
"""

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

TICK_S = 0.001
TOO_LONG_S = 0.005


class LagMonitor:
    """Times its event loop. ``report``: where it says what it saw, in milliseconds.

    A tick is how late the timer was, and the CPU time that the loop's thread took since the tick before:
    what is late without CPU time was waiting for a core. The loop keeps it alive.
    """

    def __init__(self, report: Path) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._ticks: list[tuple[float, float]] = []
        self._loop.add_signal_handler(signal.SIGUSR1, self.tell)
        self._at, self._cpu_at = time.perf_counter(), time.thread_time()
        self._tick()

    def tell(self) -> None:
        """Write what was seen, and forget it."""
        ticks, self._ticks = self._ticks, []
        partial = self._report.with_suffix(".partial")
        partial.write_text(json.dumps(_summary(ticks)))
        partial.rename(self._report)
        self._at, self._cpu_at = time.perf_counter(), time.thread_time()

    def _tick(self) -> None:
        at, cpu_at = time.perf_counter(), time.thread_time()
        self._ticks.append((at - self._at - TICK_S, cpu_at - self._cpu_at))
        self._at, self._cpu_at = at, cpu_at
        self._loop.call_later(TICK_S, self._tick)


def _summary(ticks: list[tuple[float, float]]) -> dict[str, float]:
    late = sorted(late for late, _ in ticks)
    longest = max(ticks, default=(0.0, 0.0))
    return {
        "ticks": len(ticks),
        "too_long": sum(value > TOO_LONG_S for value in late),
        "p50_ms": _quantile(late, 0.5),
        "p999_ms": _quantile(late, 0.999),
        "longest_ms": 1e3 * longest[0],
        "cpu_of_longest_ms": 1e3 * longest[1],
        "most_cpu_ms": 1e3 * max((cpu for _, cpu in ticks), default=0.0),
    }


def _quantile(ordered: list[float], share: float) -> float:
    return 1e3 * max(0.0, ordered[int(share * (len(ordered) - 1))]) if ordered else 0.0


async def _idle(report: Path) -> None:
    LagMonitor(report)
    print("idle", flush=True)
    await asyncio.Event().wait()


def _serve(report: Path) -> None:
    from sive_serve import gateway
    from sive_serve.cli import main

    start = gateway.Gateway.start

    async def started(self: gateway.Gateway) -> None:
        await start(self)
        LagMonitor(report)

    gateway.Gateway.start = started
    main()


if __name__ == "__main__":
    path = Path(sys.argv.pop(1))
    if sys.argv[1:] == ["idle"]:
        import uvloop

        uvloop.run(_idle(path))
    else:
        _serve(path)
