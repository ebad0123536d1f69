"""Real vLLM engines on this CPU: two pods with equal weights, proxies that cut, and a gateway in front."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from tests.conftest import ROOT, TINY, Served, launch, until
from tests.lab.proxy import Cuts, CuttingProxy

VLLM = ROOT / ".venv-engine" / "bin" / "vllm"
VOICES = ("base", "spinoza", "bergson", "kant")
CONTEXT_TOKENS = 512
BOOT_S = 300
VICTIMS = {"api": "entrypoints.launchers", "core": "VLLM::EngineCore", "worker": "VLLM::Worker"}

POD = """
[gateway]
first_token_s = 60
[engine]
model = "{tiny}/base"
adapters = "{tiny}/adapters.toml"
max_model_len = {context}
dtype = "float32"
port = {port}
"""


@dataclass
class Pod:
    """A `sive serve` with an engine of its own; ``engine_port`` is where its vLLM listens."""

    served: Served
    engine_port: int

    @property
    def engine_url(self) -> str:
        """VLLM's own API, past every sive."""
        return f"http://127.0.0.1:{self.engine_port}/v1"

    def engine_model(self, voice: str) -> str:
        """What vLLM calls the version of a voice that answers."""
        listed = httpx2.get(f"{self.engine_url}/models", timeout=10).json()["data"]
        return next(str(model["id"]) for model in listed if model["id"].split("@")[0] == voice)

    @property
    def phase(self) -> str:
        """What the engine is doing."""
        return str(self.served.get("/status").json()["engine"]["phase"])

    @property
    def restarts(self) -> int:
        """How often the engine was started again."""
        return int(self.served.get("/status").json()["engine"]["restarts"])

    def wait_ready(self, *, restarts: int = 0) -> None:
        """Wait until the engine serves, after so many restarts."""
        until(
            lambda: self.restarts >= restarts and self.phase == "ready",
            BOOT_S,
            f"the engine on {self.engine_port} ready",
        )

    def member(self, victim: str) -> psutil.Process:
        """Return vLLM's process of that kind: api, core or worker."""
        below = psutil.Process(self.served.process.pid).children(recursive=True)
        return next(process for process in below if VICTIMS[victim] in _command(process))


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on, below the ones that outgoing connections are given."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in range(20000 + psutil.Process().pid % 5000, 32000):
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                break
    return ports


@contextlib.contextmanager
def running_pods(folder: Path, count: int = 2) -> Iterator[list[Pod]]:
    """Boot so many pods at once; each holds 3 GB and takes half a minute."""
    with contextlib.ExitStack() as stack:
        pods = []
        for port in free_ports(count):
            config = POD.format(tiny=TINY, context=CONTEXT_TOKENS, port=port)
            pods.append(Pod(stack.enter_context(launch(folder, config)), port))
        for pod in pods:
            pod.wait_ready()
        yield pods


@dataclass
class Rung:
    """A backend of a route: its name, and its URL up to ``/v1``."""

    name: str
    url: str


def gateway_config(
    routes: dict[str, Sequence[Rung]], *, engine_models: dict[str, str] | None = None, **gateway: float
) -> str:
    """Return a configuration: each prefix of ``routes`` before a voice is a model with these rungs.

    ``engine_models``: what engines call the voices, for rungs that are named after vLLM.
    """
    names = engine_models or {}
    lines = ["[gateway]", *(f"{key} = {value}" for key, value in gateway.items())]
    for rung in {rung.name: rung for rungs in routes.values() for rung in rungs}.values():
        lines += ["[[backend]]", f'name = "{rung.name}"', f'url = "{rung.url}"']
    for prefix, rungs in routes.items():
        for voice in VOICES:
            entries = ", ".join(
                f'{{ backend = "{rung.name}", model = "{name}", weights = "tiny+{voice}" }}'
                for rung in rungs
                for name in [_name(rung, voice, names)]
            )
            lines += [f'[model."{prefix}{voice}"]', f"route = [{entries}]"]
    return "\n".join(lines) + "\n"


def _name(rung: Rung, voice: str, engine_models: dict[str, str]) -> str:
    return engine_models.get(voice, voice) if rung.name.startswith("vllm") else voice


@dataclass
class Pair:
    """Two pods behind proxies and a gateway: ``VOICE`` goes by the pods, ``vllm-VOICE`` by their engines."""

    pods: list[Pod]
    cuts: Cuts
    gateway: Served

    @property
    def url(self) -> str:
        """The gateway's API."""
        return f"{self.gateway.url}/v1"


@contextlib.contextmanager
def running_pair(folder: Path, **gateway: float) -> Iterator[Pair]:
    """Boot two pods and put four proxies and a gateway before them."""
    cuts = Cuts()
    with contextlib.ExitStack() as stack:
        pods = stack.enter_context(running_pods(folder))
        sives, engines = (
            [stack.enter_context(CuttingProxy(port, cuts)) for port in ports]
            for ports in ([pod.served.port for pod in pods], [pod.engine_port for pod in pods])
        )
        routes = {
            "": [Rung(f"pod-{letter}", proxy.url) for letter, proxy in zip("ab", sives, strict=True)],
            "vllm-": [Rung(f"vllm-{letter}", proxy.url) for letter, proxy in zip("ab", engines, strict=True)],
        }
        names = {voice: pods[0].engine_model(voice) for voice in VOICES}
        config = gateway_config(routes, engine_models=names, **gateway)
        served = stack.enter_context(launch(folder, config))
        yield Pair(pods, cuts, served)


def counters(served: Served) -> dict[str, float]:
    """Return every sample of /metrics by its name and labels, as Prometheus writes them."""
    text = served.get("/metrics").text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def total(sampled: dict[str, float], name: str, *labels: str) -> float:
    """Sum the series of a metric that have all these ``key="value"`` labels."""
    return sum(
        value
        for series, value in sampled.items()
        if series.split("{")[0] == name and all(label in series for label in labels)
    )


def is_healthy(url: str) -> bool:
    """Whether a server answers 200 to /health."""
    try:
        return httpx2.get(f"{url}/health", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False
