"""The gateway against LiteLLM's proxy, nginx and no gateway at all, in interleaved rounds."""

import contextlib
import sys
from collections import defaultdict
from pathlib import Path

from tests.bench import bodies, client, native, servers
from tests.bench.effort import Effort
from tests.bench.native import Load, Row, wrong_answers
from tests.bench.processes import Missing, Served, two_cores
from tests.bench.report import Figure, Section, Table, cell, median

WARM_UP_S, JSON_S, SINGLE_S, STREAM_S = 4.0, 4.0, 2.0, 3.0
CHUNKS = 64
GUARDED = f"64 connections, guarded, {CHUNKS} chunks"
"""Answers in one piece that the gateway streams from the backend and puts together."""

Rows = dict[tuple[str, str], list[Row]]


def measure(effort: Effort) -> Section:
    """Run all loads on all servers in every round."""
    section = Section("gateway")
    client_core, gateway_core = two_cores()
    program = native.build("load")
    rows: Rows = defaultdict(list)
    with contextlib.ExitStack() as stack:
        compared = _start(stack, section, client_core=client_core, gateway_core=gateway_core)
        for server in compared:  # LiteLLM's first answers take seconds
            Load("warm-up", 64, WARM_UP_S, bodies.chat("whole", servers.MODEL)).on(
                server, program, client_core
            )
        _check_guarded(compared)
        for number in range(effort.rounds):
            for load, server in _plan(compared, effort.scale):
                of = f"round {number + 1} of {effort.rounds}"
                print(f"gateway: {of}: {load.name}, {server.name}", file=sys.stderr)
                rows[load.name, server.name].append(load.on(server, program, client_core))
    section.figures += _figures(rows)
    section.tables += _tables(rows)
    section.remarks += [*_by_cpu_time(rows), *wrong_answers(rows)]
    return section


def _start(
    stack: contextlib.ExitStack, section: Section, *, client_core: int, gateway_core: int
) -> list[Served]:
    program = native.build("upstream")
    behind = stack.enter_context(servers.upstream(program, core=client_core))
    direct = stack.enter_context(servers.upstream(program, core=gateway_core))
    compared = [direct, stack.enter_context(servers.sive_gateway(behind.port, core=gateway_core))]
    for other in (servers.nginx, servers.litellm):
        try:
            compared.append(stack.enter_context(other(behind.port, core=gateway_core)))
        except Missing as missing:
            section.remarks.append(f"Not measured: {missing}")
    return compared


def _check_guarded(compared: list[Served]) -> None:
    """See that the answers which are put together hold every chunk: the load client does not look."""
    served = next(server for server in compared if server.name == "sive")
    text = client.answer(served.port, _guarded_body())
    numbers = [int(piece.partition(".")[2]) for piece in text.split("T")[1:]]
    if numbers != list(range(CHUNKS)):
        raise RuntimeError(f"a guarded answer is not whole: {numbers}")


def _guarded_body() -> Path:
    return bodies.chat("guarded", servers.GUARDED_MODEL, knobs=f"[delay=0][n={CHUNKS}]")


def _plan(compared: list[Served], scale: float) -> list[tuple[Load, Served]]:
    whole = bodies.chat("whole", servers.MODEL)
    streamed = bodies.chat("streamed", servers.MODEL, stream=True, knobs=f"[delay=5][n={CHUNKS}]")
    loads = [
        Load("64 connections", 64, JSON_S * scale, whole),
        Load("1 connection", 1, SINGLE_S * scale, whole),
        Load("64 streams", 64, STREAM_S * scale, streamed),
        Load("256 streams", 256, STREAM_S * scale, streamed),
    ]
    plan = [(load, server) for load in loads for server in compared]
    guarded = Load(GUARDED, 64, JSON_S * scale, _guarded_body())
    listed_body = bodies.chat("listed", servers.LISTED_MODEL)
    listed = Load("64 connections, listed model", 64, JSON_S * scale, listed_body)
    only = {"sive": guarded, "LiteLLM": listed}
    return plan + [(only[server.name], server) for server in compared if server.name in only]


def _figures(rows: Rows) -> list[Figure]:
    figures = [*_whole_figures(rows), *_stream_figures(rows)]
    return [figure for figure in figures if figure.values]


def _whole_figures(rows: Rows) -> list[Figure]:
    figures = []
    whole, alone = "64 connections", "1 connection"
    if litellm := rows.get((whole, "LiteLLM")):
        ratios = _ratios(rows[whole, "sive"], litellm, "requests_per_s")
        name = "requests/s over LiteLLM's, 64 connections"
        figures.append(Figure(name, 80, "x", ratios, at_least=True, stretch=150))
        ratios = _ratios(rows[GUARDED, "sive"], litellm, "requests_per_s")
        name = f"the same, guarded, put together from {CHUNKS} chunks"
        figures.append(Figure(name, 20, "x", ratios, at_least=True))
    if nginx := rows.get((whole, "nginx")):
        ratios = _ratios(rows[whole, "sive"], nginx, "requests_per_s")
        name = "requests/s over nginx's, 64 connections"
        figures.append(Figure(name, 0.12, "x", ratios, at_least=True, stretch=0.25))
    pairs = zip(rows[alone, "sive"], rows[alone, "direct"], strict=True)
    added = [(ours["latency_p50"] - direct["latency_p50"]) / 1000 for ours, direct in pairs]
    figures.append(Figure("added latency, p50, 1 connection", 0.25, "ms", added, stretch=0.15))
    return figures


def _stream_figures(rows: Rows) -> list[Figure]:
    ratios = _ratios(rows["256 streams", "sive"], rows["256 streams", "direct"], "chunks_per_s")
    ours = rows["64 streams", "sive"]
    transit = [row["transit_p50"] / 1000 for row in ours if row["transit_p50"]]
    cpu, cpu_at_256 = (
        [row["cpu_per_chunk_us"] for row in rows[f"{streams} streams", "sive"] if row["cpu_per_chunk_us"]]
        for streams in (64, 256)
    )
    return [
        Figure("chunks/s of direct's, 256 streams", 0.9, "x", ratios, at_least=True, stretch=0.98),
        Figure("transit of a chunk, p50, 64 streams", 0.4, "ms", transit),
        Figure("CPU a chunk, 256 streams", 35, "µs", cpu_at_256, stretch=20),
        Figure("CPU a chunk, 64 streams", 35, "µs", cpu, stretch=20),
    ]


def _ratios(ours: list[Row], theirs: list[Row], name: str) -> list[float]:
    """Round by round, but for rounds in which the other got nowhere."""
    return [mine[name] / other[name] for mine, other in zip(ours, theirs, strict=True) if other[name]]


def _tables(rows: Rows) -> list[Table]:
    return [_whole_table(rows), _stream_table(rows)]


def _whole_table(rows: Rows) -> Table:
    header = ("64 connections", "requests/s", "p50 ms", "p99 ms", "CPU µs a request", "its core busy")
    header += ("client's core busy", "peak RSS MB", "p50 ms alone")
    lines = []
    for (load, server), found in rows.items():
        if not load.startswith("64 connections"):
            continue
        single = rows.get(("1 connection", server), []) if load == "64 connections" else []
        lines.append(
            (
                server + load.removeprefix("64 connections"),
                cell(_of(found, "requests_per_s")),
                cell(_of(found, "latency_p50"), 1e-3),
                cell(_of(found, "latency_p99"), 1e-3),
                cell(_of(found, "cpu_per_answer_us")),
                cell(_of(found, "server_cpu"), 100) + " %",
                cell(_of(found, "cpu"), 100) + " %",
                cell(_of(found, "peak_rss_mb")),
                cell(_of(single, "latency_p50"), 1e-3),
            )
        )
    return Table("Answers in one piece: 3.7 KB in, 0.8 KB out.", header, lines)


def _stream_table(rows: Rows) -> Table:
    header = ("streams", "chunks/s", "of direct", "first chunk p50 ms", "transit p50 ms", "transit p99 ms")
    header += ("CPU µs a chunk", "its core busy")
    lines = []
    for (load, server), found in rows.items():
        if not load.endswith("streams"):
            continue
        chunks, direct = _of(found, "chunks_per_s"), _of(rows[load, "direct"], "chunks_per_s")
        lines.append(
            (
                f"{load.split()[0]}, {server}",
                cell(chunks),
                cell(chunks / direct if chunks is not None and direct else None),
                cell(_of(found, "first_chunk_p50"), 1e-3),
                cell(_of(found, "transit_p50"), 1e-3),
                cell(_of(found, "transit_p99"), 1e-3),
                cell(_of(found, "cpu_per_chunk_us")),
                cell(_of(found, "server_cpu"), 100) + " %",
            )
        )
    return Table(f"Streams of {CHUNKS} chunks, 5 ms apart.", header, lines)


def _of(rows: list[Row], name: str) -> float | None:
    return median(row[name] for row in rows)


def _by_cpu_time(rows: Rows) -> list[str]:
    """The ratio that a busy machine distorts least."""
    ours = _of(rows["64 connections", "sive"], "cpu_per_answer_us")
    theirs = _of(rows.get(("64 connections", "LiteLLM"), []), "cpu_per_answer_us")
    if not ours or not theirs:
        return []
    return [f"By CPU time a request, LiteLLM's is {cell(theirs / ours)} times sive's."]
