"""What a dead backend costs a caller: once it is known to be dead, and when it dies in mid-answer."""

import contextlib
import sys
from collections import defaultdict
from pathlib import Path

from tests.bench import bodies, client, leaving, native, servers
from tests.bench.effort import Effort
from tests.bench.native import Load, Row, wrong_answers
from tests.bench.processes import Missing, Served, refused_port, two_cores
from tests.bench.report import Figure, Section, Table, cell, median

WARM_UP_S, SINGLE_S, CUT_S = 1.0, 2.0, 4.0
ALIVE, DEAD_FIRST = "every backend alive", "the first one dead"
CUT, UNCUT = "cut streams", "streams"
CUTS = "[delay=2][n=16][cut=8]"
LEAST_CUTS = 50
LEAVERS = 30

Rows = dict[tuple[str, str], list[Row]]


def measure(effort: Effort) -> Section:
    """One connection: the same requests with and without a dead backend, then streams that are cut."""
    section = Section("failover")
    client_core, gateway_core = two_cores()
    load_client = native.build("load")
    rows: Rows = defaultdict(list)
    with contextlib.ExitStack() as stack:
        sive, direct = _start(stack, client_core=client_core, gateway_core=gateway_core)
        _open_breaker(sive, load_client, client_core)
        for number in range(effort.rounds):
            for load, server in _plan(sive, direct, effort.scale):
                of = f"round {number + 1} of {effort.rounds}"
                print(f"failover: {of}: {load.name}, {server.name}", file=sys.stderr)
                rows[load.name, server.name].append(load.on(server, load_client, client_core))
        section.remarks += _resumes(sive, rows)
    section.figures += [*_figures(rows), _leaving_figure()]
    section.tables += _tables(rows)
    section.remarks += wrong_answers(rows)
    return section


def _start(stack: contextlib.ExitStack, *, client_core: int, gateway_core: int) -> tuple[Served, Served]:
    program = native.build("upstream")
    behind = stack.enter_context(servers.upstream(program, core=client_core))
    direct = stack.enter_context(servers.upstream(program, core=gateway_core))
    dead_port = stack.enter_context(refused_port())
    sive = servers.sive_gateway(behind.port, core=gateway_core, name="sive-failover", dead_port=dead_port)
    return stack.enter_context(sive), direct


def _open_breaker(sive: Served, load_client: Path, core: int) -> None:
    """Ask until the dead backend is known to be dead; everything is used once on the way."""
    for load, _ in _plan(sive, sive, WARM_UP_S / SINGLE_S):
        load.on(sive, load_client, core)
    if client.metric(sive.port, "sive_backend_open", backend="dead") != 1:
        raise Missing("the dead backend's breaker did not open")


def _plan(sive: Served, direct: Served, scale: float) -> list[tuple[Load, Served]]:
    alive, dead = bodies.chat("whole", servers.MODEL), bodies.chat("dead", servers.DEAD_FIRST_MODEL)
    cut = bodies.chat("cut", servers.MODEL, stream=True, knobs=CUTS)
    uncut = bodies.chat("uncut", servers.MODEL, stream=True, knobs=CUTS.partition("[cut")[0])
    return [
        (Load(ALIVE, 1, SINGLE_S * scale, alive), sive),
        (Load(DEAD_FIRST, 1, SINGLE_S * scale, dead), sive),
        (Load(CUT, 1, CUT_S * scale, cut), sive),
        (Load(UNCUT, 1, SINGLE_S * scale, uncut), direct),
    ]


def _figures(rows: Rows) -> list[Figure]:
    pairs = zip(rows[DEAD_FIRST, "sive-failover"], rows[ALIVE, "sive-failover"], strict=True)
    added = [(dead["latency_p50"] - alive["latency_p50"]) / 1000 for dead, alive in pairs]
    pairs = zip(rows[CUT, "sive-failover"], rows[UNCUT, "direct"], strict=True)
    gaps = [(cut["gap_p50"] - direct["first_chunk_p50"]) / 1000 for cut, direct in pairs]
    return [
        Figure("latency that a dead first backend adds, p50, its breaker open", 1, "ms", added),
        Figure("gap in a stream that was cut, p50, less the new backend's first chunk", 150, "ms", gaps),
    ]


def _leaving_figure() -> Figure:
    took = [1000 * one for one in leaving.seconds(LEAVERS)]
    return Figure("from a caller's leaving to the close at the backend", 50, "ms", took)


def _tables(rows: Rows) -> list[Table]:
    whole = [
        (
            load,
            *(cell(_of(rows[load, "sive-failover"], name), 1e-3) for name in ("latency_p50", "latency_p99")),
        )
        for load in (ALIVE, DEAD_FIRST)
    ]
    cuts, direct = rows[CUT, "sive-failover"], rows[UNCUT, "direct"]
    gap = (
        str(sum(row["gaps"] for row in cuts)),
        cell(_of(cuts, "gap_p50"), 1e-3),
        cell(_of(cuts, "gap_p99"), 1e-3),
        cell(_of(direct, "first_chunk_p50"), 1e-3),
    )
    gap_header = ("cuts", "gap p50 ms", "gap p99 ms", "first chunk of the new backend, direct, p50 ms")
    return [
        Table("Answers in one piece, 1 connection.", ("route", "p50 ms", "p99 ms"), whole),
        Table("Streams cut after the 8th of 16 chunks, 1 connection.", gap_header, [gap]),
    ]


def _resumes(sive: Served, rows: Rows) -> list[str]:
    """How the gateway says that it carried the streams on, and whether there were enough of them."""
    by_ids = client.metric(sive.port, "sive_resumes_total", level="tokens", outcome="ok")
    cuts = client.metric(sive.port, "sive_cuts_total")
    remarks = [f"{cuts:,.0f} streams were cut, warm-up included, and {by_ids:,.0f} carried on by token ids."]
    if (counted := sum(row["gaps"] for row in rows[CUT, sive.name])) < LEAST_CUTS:
        remarks.append(f"Only {counted} cuts were measured: too few to say much.")
    return remarks


def _of(rows: list[Row], name: str) -> float | None:
    return median(row[name] for row in rows)
