"""The gateway against LiteLLM's proxy, nginx and no gateway at all, in interleaved rounds."""

import contextlib
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

from tests.bench import native, servers
from tests.bench.native import Load, Row
from tests.bench.processes import CACHE, Missing, Served
from tests.bench.report import Figure, Section, Table, cell, median

WARM_UP_S, JSON_S, SINGLE_S, STREAM_S = 4.0, 4.0, 2.0, 3.0
SYSTEM = (
    "You are a helpful assistant for a reading group. Answer briefly, cite the text, never invent a line. "
)
QUESTION = (
    "Question {0}: how does the scheduler decide which replica gets the next request when two have the same "
    "queue length, and what happens \u2014 step by step \u2014 if one of them fails in mid-answer? "
)
ANSWER = (
    "Answer {0}: it compares the number of running requests, then the use of the cache, and then picks at "
    "random. If a replica fails before the first token the request goes elsewhere; after it, the stream is "
    "carried on from where it broke, and whoever asked sees neither a gap nor a repetition. "
)

Rows = dict[tuple[str, str], list[Row]]


def measure(rounds: int) -> Section:
    """Run all loads on all servers ``rounds`` times."""
    section = Section("gateway")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Missing("the gateway's benchmark needs two cores: one for it, one for client and upstream")
    client_core, gateway_core = cores[:2]
    client = native.build("load")
    rows: Rows = defaultdict(list)
    with contextlib.ExitStack() as stack:
        compared = _start(stack, section, client_core=client_core, gateway_core=gateway_core)
        for server in compared:  # LiteLLM's first answers take seconds
            Load("warm-up", 64, WARM_UP_S, _body("whole")).on(server, client, client_core)
        for number in range(rounds):
            for load, server in _plan(compared):
                print(f"gateway: round {number + 1} of {rounds}: {load.name}, {server.name}", file=sys.stderr)
                rows[load.name, server.name].append(load.on(server, client, client_core))
    section.figures += _figures(rows)
    section.tables += _tables(rows)
    section.remarks += [*_by_cpu_time(rows), *_errors(rows)]
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


def _plan(compared: list[Served]) -> list[tuple[Load, Served]]:
    whole, streamed = _body("whole"), _body("streamed", stream=True)
    loads = [
        Load("64 connections", 64, JSON_S, whole),
        Load("1 connection", 1, SINGLE_S, whole),
        Load("64 streams", 64, STREAM_S, streamed),
        Load("256 streams", 256, STREAM_S, streamed),
    ]
    plan = [(load, server) for load in loads for server in compared]
    listed = Load("64 connections, listed model", 64, JSON_S, _body("listed", model=servers.LISTED_MODEL))
    return plan + [(listed, server) for server in compared if server.name == "LiteLLM"]


def _body(name: str, *, stream: bool = False, model: str = servers.MODEL) -> Path:
    """A request of 3.7 KB: 13 messages, as a conversation has them."""
    messages = [{"role": "system", "content": SYSTEM * 2}]
    for number in range(6):
        messages.append({"role": "user", "content": QUESTION.format(number)})
        messages.append({"role": "assistant", "content": ANSWER.format(number)})
    messages.append({"role": "user", "content": "Thanks. Summarise it in one line. [delay=5][n=64]"})
    body = {"model": model, "messages": messages, "temperature": 0.7, "max_tokens": 256, "stream": stream}
    path = CACHE / f"body-{name}.json"
    path.write_text(json.dumps(body, separators=(",", ":")))
    return path


def _figures(rows: Rows) -> list[Figure]:
    figures = []
    if litellm := rows.get(("64 connections", "LiteLLM")):
        pairs = zip(rows["64 connections", "sive"], litellm, strict=True)
        ratios = [ours["requests_per_s"] / theirs["requests_per_s"] for ours, theirs in pairs]
        name = "requests/s over LiteLLM's, 64 connections"
        figures.append(Figure(name, 60, "x", ratios, at_least=True))
    pairs = zip(rows["1 connection", "sive"], rows["1 connection", "direct"], strict=True)
    added = [(ours["latency_p50"] - direct["latency_p50"]) / 1000 for ours, direct in pairs]
    figures.append(Figure("added latency, p50, 1 connection", 0.35, "ms", added))
    return figures


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
    return Table("Streams of 64 chunks, 5 ms apart.", header, lines)


def _of(rows: list[Row], name: str) -> float | None:
    return median(row[name] for row in rows)


def _by_cpu_time(rows: Rows) -> list[str]:
    """The ratio that a busy machine distorts least."""
    ours = _of(rows["64 connections", "sive"], "cpu_per_answer_us")
    theirs = _of(rows.get(("64 connections", "LiteLLM"), []), "cpu_per_answer_us")
    if not ours or not theirs:
        return []
    return [f"By CPU time a request, LiteLLM's is {cell(theirs / ours)} times sive's."]


def _errors(rows: Rows) -> list[str]:
    wrong = {key: sum(row["errors"] for row in found) for key, found in rows.items()}
    return [
        f"{count} answers of {server} were wrong ({load})."
        for (load, server), count in wrong.items()
        if count
    ]
