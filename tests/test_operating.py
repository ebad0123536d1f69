"""docs/operating.md is true: its files are run, and its names are those that there are."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from sive_serve.metrics import Metrics

from tests.conftest import ROOT, Serve, Served, clean_environment, until
from tests.lab import manners
from tests.lab.hosts import Hosts, refused_url
from tests.lab.upstream import Upstream
from tests.lab.voice import Voice
from tests.test_engine import FAKE

PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
ON_GATEWAYS, BESIDE_A_CALLER = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
ASKED: dict[str, Any] = {
    "model": "spinoza",
    "messages": [{"role": "user", "content": "Qu'est-ce que la joie ?"}],
    "temperature": 0,
    "max_tokens": 60,
}
KEYS = {"SIVE_POD_KEY": "pod", "SIVE_KEY": "gateway"}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Lab hosts on one loop."""
    with Hosts() as started:
        yield started


def gateway_config(first: str, second: str) -> str:
    """The gateways' file with pods that are there, and without the world listening."""
    written = ON_GATEWAYS.replace('host = "0.0.0.0"', "probe_interval_s = 0.3")
    written = written.replace('model = "spinoza",', 'model = "lab",')  # as the lab's voices are called
    written = written.replace("https://POD-A-8000.proxy.runpod.net/v1", first)
    return written.replace("https://POD-B-8000.proxy.runpod.net/v1", second)


def caller_config(first: Served, second: Served) -> str:
    """The file beside a caller with gateways that are there."""
    written = BESIDE_A_CALLER.replace("http://10.0.0.5:8000", first.url)
    return written.replace("http://10.0.0.6:8000", second.url)


def has_learned(served: Served) -> bool:
    """Does it know that both pods have the same voice?"""
    rungs = served.get("/status").json()["models"]["spinoza"]["rungs"]
    return [rung["degraded"] for rung in rungs[:2]] == [False, False] and bool(rungs[1]["weights"])


def ask(served: Served, **more: Any) -> httpx2.Response:
    """One greedy answer."""
    return httpx2.post(f"{served.url}/v1/chat/completions", json=ASKED | more, timeout=60)


def chunks(text: str) -> list[Any]:
    """The payloads of a stream."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def said(text: str) -> str:
    """The text of a stream."""
    return "".join(choice["delta"].get("content") or "" for one in chunks(text) for choice in one["choices"])


@pytest.fixture
def house(serve: Serve, hosts: Hosts) -> tuple[list[Upstream], list[Served]]:
    """Two pods and two gateways, as the page says."""
    pods = [hosts.add(manners.speaks(), Voice("spinoza-v3")) for _ in range(2)]
    config = gateway_config(pods[0].url, pods[1].url)
    gateways = [serve(config, **KEYS) for _ in range(2)]
    until(lambda: all(map(has_learned, gateways)), what="the gateways know the pods")
    return pods, gateways


def test_a_pod_dies_in_the_middle_and_the_other_goes_on(
    house: tuple[list[Upstream], list[Served]],
) -> None:
    """Word for word, at either gateway."""
    (first, _), gateways = house
    whole = said(ask(gateways[0], stream=True).text)
    first.manner = manners.cuts(9)
    for gateway in gateways:
        answer = ask(gateway, stream=True)
        assert said(answer.text) == whole
        assert chunks(answer.text)[-1]["sive"] == {
            "backend": "pod-b",
            "degraded": False,
            "resumed": True,
            "truncated": False,
            "dropped": [],
        }
        assert 'sive_resumes_total{level="tokens",outcome="ok"}' in gateway.get("/metrics").text


@pytest.mark.parametrize("how", ["a third sive", "the client"])
def test_a_gateway_dies_in_the_middle_and_the_standby_goes_on(
    house: tuple[list[Upstream], list[Served]], serve: Serve, tmp_path: Path, how: str
) -> None:
    """Killed after the ninth token; the caller's text is the one that nobody interrupted."""
    (first, _), gateways = house
    whole = said(ask(gateways[0], stream=True).text)
    config = caller_config(*gateways)
    killed = threading.Event()

    async def until_killed(exchange: Any, _: bytes) -> bool:
        gateways[0].process.send_signal(signal.SIGKILL)
        gateways[0].process.wait()
        killed.set()
        return True

    first.manner = manners.speaks(breaks=until_killed, when=manners.after(9))
    if how == "a third sive":
        text = said(ask(serve(config, **KEYS), stream=True).text)
    else:
        text = from_the_client(config, tmp_path)
    assert killed.is_set()
    assert text == whole


def from_the_client(config: str, folder: Path) -> str:
    """What `from sive import OpenAI` prints beside a sive.toml."""
    (folder / "sive.toml").write_text(config)
    program = (
        "from sive import OpenAI\n"
        f"asked = {ASKED!r}\n"
        "for chunk in OpenAI().chat.completions.create(**asked, stream=True):\n"
        "    print(chunk.choices[0].delta.content or '', end='')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=clean_environment(HOME=str(folder), PYTHONIOENCODING="utf-8", **KEYS),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_only_the_outermost_takes_another_voice(serve: Serve) -> None:
    """With all pods gone the gateways say why they cannot; beside the caller the CPU answers."""
    config = gateway_config(refused_url(), refused_url())
    gateways = [serve(config, **KEYS) for _ in range(2)]
    caller = serve(caller_config(*gateways), **KEYS)
    answer = ask(caller)
    assert answer.headers["x-sive-backend"] == "local"
    assert ask(gateways[0]).headers["x-sive-backend"] == "local"  # asked by a caller it is the outermost
    strict = httpx2.post(
        f"{caller.url}/v1/chat/completions", json=ASKED, headers={"x-sive-require": "adapter"}, timeout=60
    )
    message = strict.json()["error"]["message"]
    for gateway in ("gateway-a", "gateway-b"):
        assert re.search(rf"{gateway}: .*HTTP 503: pod-a: .*refused the connection", message), message


def test_a_pod_that_boots_says_so_through_the_gateway(serve: Serve, tmp_path: Path) -> None:
    """Callers of the gateway hear the engine's phase and when to come back, the operator in /status too."""
    base = str(ROOT / "tests" / "data" / "tiny" / "base")
    engine = (
        f'[engine]\nmodel = "{base}"\ncommand = "{FAKE}"\nserved_model_name = "sage"\nfake-boot-s = 300\n'
    )
    pod = serve(engine + '[model.sage]\nroute = [{ backend = "engine", model = "sage" }]\n')
    backend = f'[[backend]]\nname = "pod-a"\nurl = "{pod.url}/v1"\n'
    gateway = serve(backend + '[model.sage]\nroute = [{ backend = "pod-a", model = "sage" }]\n')
    for stream in (False, True):
        answer = ask(gateway, model="sage", stream=stream)
        assert answer.status_code == 503
        message = answer.json()["error"]["message"]
        assert re.search(r"'sage': pod-a: .*HTTP 503: the engine is not ready \(\w+ for \d+ s, ", message)
        assert int(answer.headers["retry-after"]) >= 1
    rung = gateway.get("/status").json()["models"]["sage"]["rungs"][0]
    assert "the engine is not ready" in rung["last"]


def test_what_the_pod_was_asked_for_by_the_gateway_is_not_the_callers(serve: Serve) -> None:
    """A CPU model behind another sive knows no token ids; its caller never asked for any."""
    inner = serve()
    backend = f'[[backend]]\nname = "pod"\nurl = "{inner.url}/v1"\n'
    outer = serve(backend + '[model.cpu]\nroute = [{ backend = "pod", model = "local" }]\n')
    for stream in (False, True):
        answer = ask(outer, model="cpu", stream=stream, top_k=5, n=3)
        last = [one for one in chunks(answer.text) if "sive" in one][-1] if stream else answer.json()
        assert last["sive"]["dropped"] == ["top_k"]
    assert len(ask(outer, model="cpu", n=3).json()["choices"]) == 3


def test_every_metric_is_documented() -> None:
    """The page has those that there are, with their labels, and no other."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.watch(lambda: ())
    metrics.watch_adapters(lambda: ())
    metrics.watch_pods(dict)
    there = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    table = PAGE.split("## Metrics", 1)[1]
    assert set(re.findall(r"^\| `(sive_\w+)`", table, re.MULTILINE)) == there


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Nginx with the page's configuration before two gateways."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not there (make bench wants it)")
    started = []

    def start(*gateways: Served) -> str:
        (written,) = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
        port = int(refused_url().split(":")[2].removesuffix("/v1"))
        for there, gateway in zip(("10.0.0.5:8000", "10.0.0.6:8000"), gateways, strict=True):
            written = written.replace(there, f"127.0.0.1:{gateway.port}")
        written = written.replace("listen 8080", f"listen 127.0.0.1:{port}")
        paths = "".join(
            f"{name}_temp_path {tmp_path}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = tmp_path / "nginx.conf"
        config.write_text(
            f"daemon off;\npid {tmp_path}/pid;\nerror_log stderr;\nworker_processes 1;\nuser root;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{paths}{written}}}\n"
        )
        process = subprocess.Popen([program, "-c", config, "-p", tmp_path], stderr=subprocess.DEVNULL)
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        until(lambda: _answers(url), what="nginx")
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.HTTPError:
        return False


def test_the_balancer_takes_the_standby(serve: Serve, hosts: Hosts, balancer: Callable[..., str]) -> None:
    """A dead gateway costs no caller an answer; a stream comes through as it flows."""
    pod = hosts.add(manners.speaks(), Voice("spinoza-v3"))
    gateways = [serve(gateway_config(pod.url, refused_url()), **KEYS) for _ in range(2)]
    url = balancer(*gateways)
    streamed = httpx2.post(f"{url}/v1/chat/completions", json=ASKED | {"stream": True}, timeout=60)
    assert streamed.text.endswith("data: [DONE]\n\n")
    gateways[0].process.kill()
    gateways[0].process.wait()
    for _ in range(5):
        answer = httpx2.post(f"{url}/v1/chat/completions", json=ASKED, timeout=60)
        assert answer.headers["x-sive-backend"] == "pod-a"
