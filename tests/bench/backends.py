"""What other hosts cost: a Gradio app's events translated, and all kinds of rungs behind the first one."""

import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

from sive.backends.gradio_events import Reading
from sive.backends.pieces import TextChunks
from sive.pass_on import StreamRelay
from sive.protocol import dumps
from sive.relay import Label

from tests.bench import bodies, native, servers
from tests.bench.effort import Effort
from tests.bench.native import Load, wrong_answers
from tests.bench.processes import KEY, Served, two_cores
from tests.bench.report import Figure, Section

EVENTS = 200
"""Of one answer: words that grow to a text of 1,000 characters."""

ANSWERS = 50
PAIRS = 10
WARM_UP_S, LOAD_S = 2.0, 2.0
WORD = "œuvre "

REMOTE = """
[[backend]]
name = "{kind}"
kind = "{kind}"
{more}
"""
KINDS = {
    "hf": "",
    "hf-endpoint": 'url = "https://x.endpoints.huggingface.cloud/v1"',
    "together": "",
    "openrouter": "",
    "runpod-serverless": 'endpoint_id = "abc"',
    "runpod-lb": 'endpoint_id = "abc"',
    "runpod-queue": 'endpoint_id = "abc"',
    "replicate": "",
    "gradio": 'space = "owner/name"',
}


def measure(effort: Effort) -> Section:
    """Translate answers, and ask a gateway with one rung and one with all by turns."""
    section = Section("backends")
    translated, passed_on = [], []
    for _ in range(max(effort.rounds, 1)):
        translated.append(_translation_us())
        passed_on.append(_relay_us())
    added, wrong = _added_by_rungs(effort)
    section.figures = [
        Figure("translation of a Gradio app's event", 60, "µs", translated),
        Figure("CPU a request, all kinds of rungs configured, over one rung's", 1.05, "x", added),
    ]
    median_relay = sorted(passed_on)[len(passed_on) // 2]
    section.remarks = [
        f"A chunk that needs no translation takes {median_relay:.1f} µs in the same process, fed one by one.",
        *wrong,
    ]
    return section


def _translation_us() -> float:
    """CPU time of an event, each fed on its own; the text so far is 0 to 1,200 bytes long."""
    texts = [WORD * number for number in range(1, EVENTS + 1)]
    events = [f"event: generating\ndata: {json.dumps([text])}\n\n".encode() for text in texts]
    began = time.process_time()
    for _ in range(ANSWERS):
        reading = Reading(TextChunks("chat/completions", "bench"))
        for event in events:
            reading(event)
    return (time.process_time() - began) / (ANSWERS * EVENTS) * 1e6


def _relay_us() -> float:
    choice = {"index": 0, "delta": {"content": WORD}, "finish_reason": None}
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
    chunk = b"data: " + dumps(head | {"choices": [choice]}) + b"\n\n"
    began = time.process_time()
    for _ in range(ANSWERS):
        relay = StreamRelay(Label("bench"), wants_usage=False)
        for _ in range(EVENTS):
            relay.feed(chunk, 0.0)
    return (time.process_time() - began) / (ANSWERS * EVENTS) * 1e6


def _added_by_rungs(effort: Effort) -> tuple[list[float], list[str]]:
    """Ratios of CPU time a request, pair by pair, who is first changing with each; and what went wrong."""
    client_core, gateway_core = two_cores()
    upstream, program = native.build("upstream"), native.build("load")
    load = Load(
        "64 connections",
        64,
        LOAD_S * effort.scale,
        bodies.chat("rungs", servers.MODEL, knobs="[delay=0][n=8]"),
    )
    ratios, rows = [], defaultdict(list)
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(servers.upstream(upstream, core=client_core))
        one = stack.enter_context(_gateway("one-rung", behind.port, gateway_core, kinds={}))
        many = stack.enter_context(_gateway("all-rungs", behind.port, gateway_core, kinds=KINDS))
        for server in (one, many):
            Load("warm-up", 64, WARM_UP_S, load.body).on(server, program, client_core)
        for number in range(max(PAIRS, effort.rounds)):
            print(f"backends: pair {number + 1}", file=sys.stderr)
            pair = (one, many) if number % 2 else (many, one)
            for server in pair:
                rows[load.name, server.name].append(load.on(server, program, client_core))
            last = {name: found[-1]["cpu_per_answer_us"] for (_, name), found in rows.items()}
            ratios.append(last["all-rungs"] / last["one-rung"])
    return ratios, wrong_answers(rows)


@contextlib.contextmanager
def _gateway(name: str, port: int, core: int, *, kinds: dict[str, str]) -> Iterator[Served]:
    """A gateway whose first rung answers, and whose others are never asked."""
    config = f'[[backend]]\nname = "first"\nurl = "http://127.0.0.1:{port}/v1"\nprobe = "passive"\n'
    config += "".join(REMOTE.format(kind=kind, more=more) for kind, more in kinds.items())
    route = ", ".join(f'{{ backend = "{one}", model = "fake", weights = "w" }}' for one in ("first", *kinds))
    config += f"[model.{servers.MODEL}]\nroute = [{route}]\n"
    with servers.sive(config, name=name, core=core, SIVE_API_KEYS=KEY) as served:
        yield served
