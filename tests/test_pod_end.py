"""The end of a pod, and of its engine, in the middle of answers: nobody is left with half a sentence."""

import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.conftest import TINY, Served, launch, until
from tests.test_engine import FAKE

STREAMS, TOKENS = 8, 30
CONFIG = """
[engine]
model = "{tiny}/base"
adapters = "{tiny}/adapters.toml"
command = "{fake}"
fake-tokens = {tokens}
fake-token-s = 0.1
"""
LAST_WORDS = " ".join(map(str, range(1, TOKENS)))


@dataclass
class Caller:
    """One stream, read in a thread."""

    url: str
    headers: dict[str, str]
    events: list[str] = field(default_factory=list)
    failure: str = ""

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        body = {"model": "spinoza", "messages": [{"role": "user", "content": "?"}], "stream": True}
        try:
            with httpx2.stream("POST", self.url, json=body, headers=self.headers, timeout=60) as reply:
                for line in reply.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line[6:])
        except httpx2.HTTPError as exc:
            self.failure = repr(exc)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """What came as JSON."""
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def text(self) -> str:
        """What was said."""
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk.get("choices", ())]
        return "".join(delta.get("content") or "" for delta in deltas)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Served]:
    """A sive with an engine that takes three seconds for an answer."""
    with launch(tmp_path, CONFIG.format(tiny=TINY, fake=FAKE, tokens=TOKENS)) as served:
        until(lambda: served.get("/status").json()["engine"]["phase"] == "ready", 30, "the engine ready")
        yield served


def callers(pod: Served, **headers: str) -> list[Caller]:
    """Eight streams, each of which has begun to speak."""
    asked = [Caller(f"{pod.url}/v1/chat/completions", headers) for _ in range(STREAMS)]
    until(lambda: all("1" in caller.text for caller in asked), 30, "all speak")
    return asked


def ended(asked: list[Caller]) -> None:
    """Wait for the end of every stream."""
    for caller in asked:
        caller.thread.join(60)
        assert not caller.thread.is_alive()
        assert caller.failure == ""


def engine(pod: Served) -> psutil.Process:
    """The engine's process."""
    below = psutil.Process(pod.process.pid).children(recursive=True)
    return next(one for one in below if str(FAKE) in one.cmdline() and "--config" in one.cmdline())


def test_a_pod_that_is_told_to_go_finishes_what_it_says(pod: Served) -> None:
    """SIGTERM with eight streams: each is whole and by the engine, which goes after the last of them."""
    asked, running = callers(pod), engine(pod)
    pod.process.send_signal(signal.SIGTERM)
    ended(asked)
    for caller in asked:
        assert caller.events[-1] == "[DONE]"
        assert caller.text.endswith(LAST_WORDS)
        assert not any(chunk.get("sive", {}).get("degraded") for chunk in caller.chunks)
    assert pod.process.wait(20) == 0
    assert not running.is_running()


def test_answers_of_a_killed_engine_are_carried_on_by_who_is_left(pod: Served) -> None:
    """By the CPU of that pod, which says so; each stream ends as a whole answer does."""
    asked = callers(pod)
    engine(pod).kill()
    ended(asked)
    for caller in asked:
        assert caller.events[-1] == "[DONE]"
        last = next(chunk["sive"] for chunk in reversed(caller.chunks) if "sive" in chunk)
        assert (last["backend"], last["degraded"], last["resumed"]) == ("local", True, True)


def test_answers_of_a_killed_engine_that_nobody_may_carry_on_end_in_an_error(pod: Served) -> None:
    """An error event that says why, never a clean end."""
    asked = callers(pod, **{"x-sive-require": "adapter"})
    engine(pod).kill()
    ended(asked)
    for caller in asked:
        assert "[DONE]" not in caller.events
        assert caller.chunks[-1]["error"]["message"]
