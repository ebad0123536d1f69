"""What Netlify's functions add to the first byte, each in the runtime that it is for."""

import http.client
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.bench import bodies, native, servers
from tests.bench.effort import Effort
from tests.bench.processes import CACHE, KEY, ROOT, Missing, clean_environment, running, wait_for_text
from tests.bench.report import Figure, Section

QUESTIONS = 60
"""Of each way in each round, which take turns."""

SITE = ROOT / "clients" / "netlify"
DENO = ROOT / ".venv-callers" / "deno" / "node_modules" / "@deno" / "linux-x64-glibc" / "deno"
CONFIG = """
[[backend]]
name = "lab"
url = "{url}"
probe = "passive"
[model.m]
route = [{{ backend = "lab", model = "lab" }}]
"""


class Way:
    """One way to the gateway, on a connection that is kept."""

    def __init__(self, port: int, path: str, body: bytes) -> None:
        self.path = path
        self.body = body
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = {"content-type": "application/json", "origin": f"http://127.0.0.1:{port}"}
        self._headers["authorization"] = f"Bearer {KEY}"

    def first_byte_s(self) -> float:
        """From the question to the first byte of the answer's body."""
        asked_at = time.monotonic()
        self._connection.request("POST", self.path, self.body, self._headers)
        reply = self._connection.getresponse()
        if reply.status != 200 or not reply.read(1):
            raise Missing(f"{self.path} answers HTTP {reply.status}")
        first_at = time.monotonic()
        reply.read()
        return first_at - asked_at


def measure(effort: Effort) -> Section:
    """Ask the gateway by itself, through the function under Node, and the edge function under Deno."""
    section = Section("netlify")
    if not DENO.exists():
        raise Missing("Deno is not there: tests/install_callers.sh deno")
    added: dict[str, list[float]] = {"function": [], "edge": []}
    direct_s: list[float] = []
    body = bodies.chat("netlify", "m", stream=True, knobs="[n=3]").read_bytes()
    with servers.upstream(native.build("upstream"), core=None) as host:
        config = CONFIG.format(url=f"http://127.0.0.1:{host.port}/v1")
        with servers.sive(config, name="sive-netlify", SIVE_API_KEYS=KEY) as sive:
            given = {
                "SIVE_GATEWAY_URLS": f"127.0.0.1:{sive.port}",
                "SIVE_API_KEY": KEY,
                "SIVE_PER_MINUTE": "100000",
            }
            node = ["node", SITE / "dev" / "server.mjs", "0"]
            rights = ["--allow-env", "--allow-net=127.0.0.1", "--no-remote", "--quiet"]
            deno = [DENO, "run", *rights, ROOT / "tests" / "callers" / "edge.mjs"]
            with _site("function", node, given) as functions, _site("edge", deno, given) as edges:
                ways = {
                    "direct": Way(sive.port, "/v1/chat/completions", body),
                    "function": Way(functions, "/api/chat", body),
                    "edge": Way(edges, "/v1/chat/completions", body),
                }
                _round(ways, 20)  # both runtimes compile what is hot
                for number in range(effort.rounds):
                    print(f"netlify: round {number + 1} of {effort.rounds}", file=sys.stderr)
                    medians = _round(ways, max(5, int(QUESTIONS * effort.scale)))
                    direct_s.append(medians["direct"])
                    for name, values in added.items():
                        values.append(1000 * (medians[name] - medians["direct"]))
    titles = {"function": "the streaming function under Node 20", "edge": "the edge function under Deno"}
    for name, values in added.items():
        section.figures.append(Figure(f"added to the first byte by {titles[name]}", 20, "ms", values))
    section.remarks.append(f"The gateway by itself: {1000 * statistics.median(direct_s):.1f} ms.")
    return section


def _round(ways: Mapping[str, Way], questions: int) -> dict[str, float]:
    """The median of each way; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(questions):
        for name, way in ways.items():
            seconds[name].append(way.first_byte_s())
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def _site(name: str, command: list[str | Path], given: Mapping[str, str]) -> Iterator[int]:
    log = CACHE / f"netlify-{name}" / "output.txt"
    env = clean_environment(DENO_DIR=str(log.parent), **given)
    with running(command, log=log, environment=env) as process:
        yield int(wait_for_text(r"http://127\.0\.0\.1:(\d+)", process, log))
