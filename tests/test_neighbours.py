"""Neighbours who answer, but not what was asked for: each is left for the next rung, and why is known."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import psutil
import pytest

from tests.conftest import Served, launch, until
from tests.lab import neighbours
from tests.lab.hosts import Hosts
from tests.lab.tls import certificate, server_context
from tests.lab.upstream import Manner, Upstream

HI = [{"role": "user", "content": "hi"}]
ROWS: dict[str, tuple[Manner, str, str]] = {
    "html": (neighbours.html, "http_200", "http_200"),
    "gzip": (neighbours.gzipped, "malformed", "malformed"),
    "empty": (neighbours.empty, "eof", "http_200"),
    "error": (neighbours.error_in_200, "in_band_error", "malformed"),
    "half-json": (neighbours.half_json, "eof", "malformed"),
    "half-body": (neighbours.half_body, "eof", "eof"),
    "large": (neighbours.hundred_megabytes, "too_large", "too_large"),
    "endless": (neighbours.endless_line, "too_large", "too_large"),
}
"""What each does, and why it is left when a stream was asked for, and when one piece was."""


@dataclass
class Stage:
    """A gateway among its neighbours."""

    served: Served
    hosts: dict[str, Upstream]
    thief: Upstream


def configured(name: str, host: Upstream) -> str:
    """A backend, and two models that fall from it to the good one; the second passes answers through."""
    route = f'route = [{{ backend = "{name}", model = "x" }}, {{ backend = "good", model = "x" }}]\n'
    return (
        f'[[backend]]\nname = "{name}"\nurl = "{host.url}"\nprobe = "passive"\napi_key_env = "THEIR_KEY"\n'
        f"[model.{name}]\n{route}[model.{name}-whole]\nguard_json = false\n{route}"
    )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Over plain HTTP, and over TLS, which another wire carries."""
    folder = tmp_path_factory.mktemp("neighbours")
    trusted, unknown = certificate(folder, "trusted"), certificate(folder, "unknown")
    with Hosts() as hosts:
        good, thief = hosts.add(neighbours.GOOD), hosts.add(neighbours.GOOD)
        tls = server_context(trusted)
        made = {name: hosts.add(manner) for name, (manner, *_) in ROWS.items()}
        made |= {f"{name}-tls": hosts.add(manner, tls=tls) for name, (manner, *_) in ROWS.items()}
        for status in (301, 302, 307, 308):
            to = f"{thief.url}/chat/completions"
            made[f"redirect-{status}"] = hosts.add(neighbours.redirects(status, to))
            made[f"redirect-{status}-tls"] = hosts.add(neighbours.redirects(status, to), tls=tls)
        made["well-tls"] = hosts.add(neighbours.GOOD, tls=tls)
        made["unknown-tls"] = hosts.add(neighbours.GOOD, tls=server_context(unknown))
        made["after-a-word"] = hosts.add(neighbours.endless_line_after_a_word)
        config = "[gateway]\nmax_reply_bytes = 4000000\n"
        config += f'[[backend]]\nname = "good"\nurl = "{good.url}"\nprobe = "passive"\n'
        config += "".join(configured(name, host) for name, host in made.items())
        keys = {"SSL_CERT_FILE": str(trusted), "THEIR_KEY": "their-secret"}
        with launch(folder, config, **keys) as served:
            yield Stage(served, made, thief)


def ask(stage: Stage, model: str, *, stream: bool) -> httpx2.Response:
    """A chat completion."""
    asked = {"model": model, "messages": HI, "stream": stream}
    return httpx2.post(f"{stage.served.url}/v1/chat/completions", json=asked, timeout=60)


def failovers(stage: Stage, name: str) -> dict[str, int]:
    """How often a backend was left, by why."""
    found = {}
    for line in stage.served.get("/metrics").text.splitlines():
        if line.startswith(f'sive_failovers_total{{backend="{name}"'):
            found[line.split('reason="')[1].split('"')[0]] = int(float(line.split()[-1]))
    return found


def text(answer: httpx2.Response) -> str:
    """What an answer says, streamed or not."""
    if "event-stream" not in answer.headers["content-type"]:
        return str(answer.json()["choices"][0]["message"]["content"])
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: {")]
    chunks = [json.loads(line)["choices"] for line in lines]
    return "".join(one[0]["delta"].get("content") or "" for one in chunks if one)


@pytest.mark.parametrize("wire", ["", "-tls"])
@pytest.mark.parametrize("row", ROWS)
def test_a_bad_neighbour_is_left_for_the_next(row: str, wire: str, stage: Stage) -> None:
    """Streamed, put together from a stream, and in one piece; its connection is closed."""
    name, (_, streamed, whole) = row + wire, ROWS[row]
    for model, stream in ((name, True), (name, False), (f"{name}-whole", False)):
        answer = ask(stage, model, stream=stream)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-sive-backend"] == "good"
        assert text(answer) == "Deus sive Natura"
    wanted = {streamed: 2} | {whole: 3 if whole == streamed else 1}
    assert failovers(stage, name) == wanted
    until(lambda: all(one.end != "open" or one.left_at for one in stage.hosts[name].seen), what="closing")


@pytest.mark.parametrize("wire", ["", "-tls"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_never_followed(status: int, wire: str, stage: Stage) -> None:
    """Nobody else is told our request, nor the key that is the first one's."""
    name = f"redirect-{status}{wire}"
    for stream in (True, False):
        answer = ask(stage, f"{name}-whole", stream=stream)
        assert answer.headers["x-sive-backend"] == "good"
        assert "location" not in answer.headers
    assert failovers(stage, name) == {f"http_{status}": 2}
    assert stage.hosts[name].seen[0].headers["authorization"] == "Bearer their-secret"
    assert stage.thief.seen == []


def test_a_certificate_that_does_not_verify_is_not_trusted(stage: Stage) -> None:
    """It never hears the request; one that verifies answers."""
    assert ask(stage, "well-tls", stream=False).headers["x-sive-backend"] == "well-tls"
    for model, stream in (("unknown-tls", True), ("unknown-tls", False), ("unknown-tls-whole", False)):
        assert ask(stage, model, stream=stream).headers["x-sive-backend"] == "good"
    assert failovers(stage, "unknown-tls") == {"tls": 3}
    assert stage.hosts["unknown-tls"].seen == []


def test_an_event_without_an_end_breaks_a_stream_off(stage: Stage) -> None:
    """After a word nobody else can take over here: an error event, and no clean end."""
    answer = ask(stage, "after-a-word", stream=True)
    assert '"code":"stream_interrupted"' in answer.text
    assert "[DONE]" not in answer.text
    assert len(answer.content) < 100_000


def test_none_of_them_fills_the_memory(stage: Stage) -> None:
    """What they sent was thrown away."""
    gateway = psutil.Process(stage.served.process.pid)
    for name in ("large", "endless", "large-tls", "endless-tls"):
        ask(stage, name, stream=True)
    assert gateway.memory_info().rss < 300_000_000
