"""Versions of an adapter, exchanged under callers who never stop: who answered, and how evenly."""

import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.conftest import TINY, launch
from tests.lab.answers import Json
from tests.lab.engines import Pod, free_ports

ADMIN = {"authorization": "Bearer admin"}
CHANGED, OTHER = "voice", "bergson"
VERSIONS = ("spinoza", "kant")
"""Whose files the changed adapter has in turn: two voices that are easily told apart."""

QUESTION = "Qu'est-ce que la liberté ?"
TOKENS = 48
CONFIG = """
[gateway]
first_token_s = 60
[engine]
model = "{tiny}/base"
adapters = "{folder}/adapters.toml"
max_model_len = 512
port = {port}
"""


@contextmanager
def changing_pod(folder: Path) -> Iterator[Pod]:
    """A pod whose list has the adapter that is changed and another one."""
    for name in (*VERSIONS, OTHER):
        shutil.copytree(TINY / name, folder / name)
    entry = '[[adapter]]\nname = "{}"\nsource = "file:{}"\nbase_model = "file:{}/base"\n'
    listed = [entry.format(CHANGED, VERSIONS[0], TINY), entry.format(OTHER, OTHER, TINY)]
    (folder / "adapters.toml").write_text("\n".join(listed))
    (port,) = free_ports(1)
    config = CONFIG.format(tiny=TINY, folder=folder, port=port)
    with launch(folder, config, SIVE_ADMIN_KEYS="admin") as served:
        pod = Pod(served, port)
        pod.wait_ready()
        yield pod


def change(pod: Pod, **asked: Any) -> httpx2.Response:
    """Ask for a change as an administrator."""
    return httpx2.post(f"{pod.served.url}/admin/adapters", json=asked, headers=ADMIN, timeout=300)


@dataclass(frozen=True)
class Heard:
    """One answer: when it was asked for and when it ended, and the gaps between its tokens, in seconds."""

    began: float
    ended: float
    text: str
    is_complete: bool
    gaps: tuple[float, ...]


@dataclass
class Crowd:
    """Callers who ask again and again, until ``stop``."""

    pod: Pod
    heard: dict[str, list[Heard]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, **callers: int) -> None:
        """So many callers of each voice."""
        for voice, count in callers.items():
            self.heard[voice] = []
            for _ in range(count):
                self._threads.append(threading.Thread(target=self._ask_on, args=(voice,)))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every caller hear its last answer to the end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, voice: str) -> None:
        with httpx2.Client(timeout=120) as client:
            while not self._stop.is_set():
                self.heard[voice].append(listen(client, self.pod, voice))


def body(voice: str) -> Json:
    """A greedy request."""
    return {
        "model": voice,
        "messages": [{"role": "system", "content": ""}, {"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
    }


def listen(client: httpx2.Client, pod: Pod, voice: str) -> Heard:
    """Ask once."""
    began, at, text, is_complete = time.monotonic(), list[float](), "", False
    try:
        with client.stream("POST", f"{pod.served.url}/v1/chat/completions", json=body(voice)) as reply:
            for line in reply.iter_lines():
                is_complete = is_complete or line == "data: [DONE]"
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
                    text += choice["delta"].get("content") or ""
                at.append(time.monotonic())
    except httpx2.HTTPError:
        is_complete = False
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(at))
    return Heard(began, time.monotonic(), text, is_complete, gaps)


@dataclass(frozen=True)
class Swap:
    """A change that was asked for and done: from when to when, and whose files answer since."""

    began: float
    ended: float
    version: str


def swap(pod: Pod, count: int, *, first: str = VERSIONS[1]) -> list[Swap]:
    """Exchange the version so many times."""
    done = []
    for number in range(count):
        version = VERSIONS[(VERSIONS.index(first) + number) % len(VERSIONS)]
        began = time.monotonic()
        reply = change(pod, action="update", name=CHANGED, source=f"file:{version}")
        assert reply.status_code == 200, reply.text
        done.append(Swap(began, time.monotonic(), version))
    return done


def wrong(heard: list[Heard], swaps: list[Swap], texts: dict[str, str]) -> list[str]:
    """What callers should not have been told: half an answer, a mixed one, or one by the wrong version."""
    found = []
    for one in heard:
        allowed = {swap.version for swap in swaps if swap.began < one.ended and swap.ended > one.began}
        before = [swap for swap in swaps if swap.ended <= one.began]
        allowed.add(before[-1].version if before else VERSIONS[0])
        if not one.is_complete:
            found.append(f"an answer broke off after {one.text!r}")
        elif one.text not in {texts[version] for version in allowed}:
            found.append(f"{one.text!r} where only {sorted(allowed)} may have answered")
    return found
