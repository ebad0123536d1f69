"""How long the gateway's event loop is blocked while everything happens at once."""

import contextlib
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tests.bench import bodies, client, native, servers
from tests.bench.effort import Effort
from tests.bench.native import Load, Row, wrong_answers
from tests.bench.processes import CACHE, Missing, Served, on_core, running, two_cores, wait_for_text
from tests.bench.report import Figure, Section, Table, cell, median

WARM_UP_S, MIXED_S = 1.5, 6.0
SCRAPE_S = 1.0
TELL_S = 10.0
LONG_TURNS = 182
"""Of a conversation of 100 KB."""

MONITORED = Path(__file__).with_name("monitored.py")
NAME, IDLE = "sive-lag", "idle loop"

Rows = dict[tuple[str, str], list[Row]]


@dataclass(frozen=True)
class _Watched:
    """A process whose event loop times itself, and where it says what it saw."""

    pid: int
    report: Path

    def told(self) -> Row:
        """What it saw since it was asked last."""
        self.report.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + TELL_S
        while not self.report.exists():
            if time.monotonic() > deadline:
                raise Missing("the event loop did not say how it fared")
            time.sleep(0.005)
        told: Row = json.loads(self.report.read_text())
        return told


def measure(effort: Effort) -> Section:
    """In each round an idle loop on the gateway's core, then the gateway under the mixed load."""
    section = Section("lag")
    client_core, gateway_core = two_cores()
    seconds = MIXED_S * effort.scale
    rows: Rows = defaultdict(list)
    idle, busy = [], []
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_core(client_core))
        sive, gateway = stack.enter_context(_gateway(client_core=client_core, gateway_core=gateway_core))
        mixed = _Mixed(sive, client_core)
        mixed.run(WARM_UP_S)
        for number in range(effort.rounds):
            print(f"lag: round {number + 1} of {effort.rounds}", file=sys.stderr)
            idle.append(_idle(seconds, gateway_core))
            gateway.told()
            for name, row in mixed.run(seconds).items():
                rows[name, sive.name].append(row)
            busy.append(gateway.told())
    name = "longest that the event loop was blocked, mixed load"
    section.figures.append(Figure(name, 5, "ms", [row["longest_ms"] for row in busy]))
    section.tables += [_table({"mixed load": busy, f"{IDLE}, for comparison": idle}), _load_table(rows)]
    section.remarks += wrong_answers(rows)
    return section


@contextlib.contextmanager
def _gateway(*, client_core: int, gateway_core: int) -> Iterator[tuple[Served, _Watched]]:
    report = CACHE / NAME / "lag.json"
    program = ("-P", MONITORED, report)
    with (
        servers.upstream(native.build("upstream"), core=client_core) as behind,
        servers.sive_gateway(behind.port, core=gateway_core, name=NAME, program=program) as sive,
    ):
        yield sive, _Watched(sive.pid, report)


def _idle(seconds: float, core: int) -> Row:
    """The same timer in a process that does nothing else: what the machine itself adds."""
    home = CACHE / "lag-idle"
    log, report = home / "output.txt", home / "lag.json"
    with running([sys.executable, "-P", MONITORED, report, "idle"], log=log, core=core) as process:
        wait_for_text("(idle)", process, log)
        watched = _Watched(process.pid, report)
        watched.told()
        time.sleep(seconds)
        return watched.told()


class _Mixed:
    """Streams, answers in one piece, long requests, answers put together from many chunks, and a scraper."""

    def __init__(self, sive: Served, core: int) -> None:
        self._sive = sive
        self._core = core
        self._program = native.build("load")
        self._bodies = {
            "64 streams": (64, bodies.chat("streamed", servers.MODEL, stream=True)),
            "16 JSON connections": (16, bodies.chat("whole", servers.MODEL)),
            "2 connections with requests of 100 KB": (
                2,
                bodies.chat("long", servers.MODEL, turns=LONG_TURNS),
            ),
            "1 connection, guarded JSON of 1,000 chunks": (
                1,
                bodies.chat("guarded-long", servers.GUARDED_MODEL, knobs="[delay=0][n=1000]"),
            ),
        }

    def run(self, seconds: float) -> dict[str, Row]:
        """All of it for so long; what each load client counted."""
        loads = [Load(name, number, seconds, body) for name, (number, body) in self._bodies.items()]
        with ThreadPoolExecutor(len(loads)) as pool:
            asked = [pool.submit(load.on, self._sive, self._program, self._core) for load in loads]
            while _are_running(asked):
                client.metric(self._sive.port, "sive_requests_total")
            return {load.name: one.result() for load, one in zip(loads, asked, strict=True)}


def _are_running(futures: list[Future[Row]]) -> bool:
    return bool(wait(futures, SCRAPE_S).not_done)


def _table(measured: dict[str, list[Row]]) -> Table:
    header = ("timer of 1 ms", "late by p50 ms", "p99.9 ms", "longest ms", "its CPU ms")
    header += ("longest of all rounds ms", "most CPU in one turn ms", "later than 5 ms")
    names = ("p50_ms", "p999_ms", "longest_ms", "cpu_of_longest_ms")
    lines = []
    for name, rows in measured.items():
        late, ticks = (sum(row[key] for row in rows) for key in ("too_long", "ticks"))
        lines.append(
            (
                name,
                *(cell(median(row[key] for row in rows)) for key in names),
                cell(max(row["longest_ms"] for row in rows)),
                cell(max(row["most_cpu_ms"] for row in rows)),
                f"{late:,} of {ticks:,}",
            )
        )
    return Table("How late a timer of the event loop is.", header, lines)


def _load_table(rows: Rows) -> Table:
    header = ("the mixed load", "answers/s", "p50 ms", "p99 ms")
    names = (("requests_per_s", 1.0), ("latency_p50", 1e-3), ("latency_p99", 1e-3))
    lines = [
        (load, *(cell(median(row[name] for row in found), scale) for name, scale in names))
        for (load, _), found in rows.items()
    ]
    return Table("What was asked meanwhile; /metrics was read every second besides.", header, lines)
