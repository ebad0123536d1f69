"""What the server holds: with a gpt2-sized model at work, and with no model loaded."""

import http.client
import sys

from tests.bench import client, servers, weights
from tests.bench.effort import Effort
from tests.bench.report import Figure, Section

STREAMS, PROMPT_TOKENS, NEW_TOKENS = 4, 64, 64
PAGES = ("/health", "/v1/models", "/ready", "/status", "/metrics")


def measure(effort: Effort) -> Section:
    """Start a server for each value, so that nothing is left from the round before."""
    _, int8 = weights.prepared()
    prompt, _ = weights.prompt_of(PROMPT_TOKENS)
    idle, busy = [], []
    for number in range(effort.rounds):
        print(f"memory: round {number + 1} of {effort.rounds}", file=sys.stderr)
        idle.append(_idle())
        with servers.sive(f'[local]\nmodel = "{int8}"\n', name="sive-memory") as served:
            client.streams(STREAMS, served.port, prompt, NEW_TOKENS)
            busy.append(served.peak_rss_mb)
    name = f"peak RSS of `sive serve`, gpt2-sized int8, {STREAMS} streams at once"
    figures = [Figure(name, 400, "MB", busy), Figure("RSS with no local model loaded", 80, "MB", idle)]
    return Section("memory", figures)


def _idle() -> float:
    """Resident memory after every page was read once."""
    with servers.sive(name="sive-idle") as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        for page in PAGES:
            connection.request("GET", page)
            connection.getresponse().read()
        connection.close()
        return served.rss_mb
