"""The gateway's memory over a million requests and ten thousand streams that are cut."""

import contextlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from tests.bench import bodies, client, native, servers
from tests.bench.effort import Effort
from tests.bench.native import Load, Row, wrong_answers
from tests.bench.processes import CACHE, Served, on_core, two_cores
from tests.bench.report import Figure, Section, Table, shown

WARM_UP_REQUESTS, WARM_UP_CUTS = 100_000, 1_000
"""Until then the allocator settles."""

REQUESTS_PER_CUT = 100
CONNECTIONS, STREAMS = 64, 4
CUTS = "[delay=2][n=32][cut=16]"
LIMIT_S, SAMPLE_S = 600.0, 2.0
NAME = "sive-soak"


@dataclass(frozen=True)
class Memory:
    """Resident memory after the warm-up, meanwhile, and when all was answered, in MB."""

    before: float
    meanwhile: list[float]
    after: float

    @property
    def furthest(self) -> float:
        """The largest distance from what it was after the warm-up."""
        return max(abs(value - self.before) for value in [*self.meanwhile, self.after])


def measure(effort: Effort) -> Section:
    """Requests and cut streams at the same time, until there were enough of both."""
    section = Section("soak")
    client_core, gateway_core = two_cores()
    requests, cuts = effort.soak, effort.soak // REQUESTS_PER_CUT
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_core(client_core))
        behind = stack.enter_context(servers.upstream(native.build("upstream"), core=client_core))
        gateway = servers.sive_gateway(behind.port, core=gateway_core, name=NAME)
        sive = stack.enter_context(gateway)
        share = min(1, requests / (5 * WARM_UP_REQUESTS))
        warm_up = _Run(sive, client_core, int(WARM_UP_REQUESTS * share), int(WARM_UP_CUTS * share))
        list(warm_up.memory())
        before = sive.rss_mb
        run = _Run(sive, client_core, requests, cuts)
        memory = Memory(before, list(run.memory()), sive.rss_mb)
        section.remarks += _remarks(sive, warm_up, run)
    (CACHE / NAME / "output.txt").unlink()  # a line a request: 100 MB
    name = f"RSS over {requests:,} requests and {cuts:,} cut streams, furthest from that after the warm-up"
    section.figures.append(Figure(name, 5, "MB", [memory.furthest]))
    section.tables.append(_table(memory))
    return section


class _Run:
    """So many requests, and beside them so many streams that are cut."""

    def __init__(self, sive: Served, core: int, requests: int, cuts: int) -> None:
        whole = bodies.chat("whole", servers.MODEL)
        cut = bodies.chat("soak-cut", servers.MODEL, stream=True, knobs=CUTS)
        self.wanted = requests, cuts
        self.loads = (
            Load("requests", CONNECTIONS, LIMIT_S, whole, requests),
            Load("cuts", STREAMS, LIMIT_S, cut, cuts),
        )
        self.rows: list[Row] = []
        self.seconds = 0.0
        self._sive = sive
        self._core = core

    def memory(self) -> Iterator[float]:
        """Resident memory every few seconds, until both loads are through."""
        began = time.monotonic()
        program = native.build("load")
        with ThreadPoolExecutor(len(self.loads)) as pool:
            running = [pool.submit(load.on, self._sive, program, self._core) for load in self.loads]
            while _are_running(running):
                yield self._sive.rss_mb
                print(f"soak: {time.monotonic() - began:.0f} s: {self._sive.rss_mb:.1f} MB", file=sys.stderr)
            self.rows = [one.result() for one in running]
        self.seconds = time.monotonic() - began


def _are_running(futures: list[Future[Row]]) -> bool:
    return bool(wait(futures, SAMPLE_S).not_done)


def _table(memory: Memory) -> Table:
    header = ("after the warm-up", "lowest", "highest", "at the end", "samples")
    samples = [*memory.meanwhile, memory.after]
    values = (memory.before, min(samples), max(samples), memory.after)
    return Table("Resident memory, MB.", header, [(*(f"{value:.1f}" for value in values), str(len(samples)))])


def _remarks(sive: Served, warm_up: _Run, run: _Run) -> list[str]:
    """What was answered in which time, what the gateway says of the cuts, and what went wrong."""
    answers, streams = (row["answers_ever"] for row in run.rows)
    by_ids = client.metric(sive.port, "sive_resumes_total", level="tokens", outcome="ok")
    cuts = client.metric(sive.port, "sive_cuts_total")
    remarks = [
        f"{answers:,} requests and {streams:,} cut streams in {shown(run.seconds)} s.",
        f"{cuts:,.0f} streams were cut, warm-up included, and {by_ids:,.0f} carried on by token ids.",
    ]
    for wanted, row, load in zip(run.wanted, run.rows, run.loads, strict=True):
        if row["answers_ever"] < wanted:
            remarks.append(f"Only {row['answers_ever']:,} of {wanted:,} {load.name} within {LIMIT_S:g} s.")
    rows = [*zip(warm_up.loads, warm_up.rows, strict=True), *zip(run.loads, run.rows, strict=True)]
    return remarks + [text for load, row in rows for text in wrong_answers({(load.name, sive.name): [row]})]
