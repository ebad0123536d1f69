"""A real vLLM under its guard: it boots in phases, comes back after every death, and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests" / "data" / "tiny"
VLLM = ROOT / ".venv-engine" / "bin" / "vllm"
ADAPTERS = ("spinoza", "bergson", "kant")

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not VLLM.is_file(), reason="no vLLM here: make engine"),
]

# Hosts an engine as the gateway does, and prints its state whenever the phase changes.
HOST = """
import asyncio, dataclasses, json, os, pathlib, sys
from sive.config import EngineSettings
from sive_adapters.store import Store
from sive_serve.engine import Engine
from sive_serve.engine_adapters import EngineAdapters

async def host():
    settings = EngineSettings.model_validate_json(sys.argv[1])
    listed = pathlib.Path(sys.argv[2])
    adapters = EngineAdapters(listed, Store(listed.parent / "store"), model=settings.model)
    engine = Engine(settings, adapters, environ=os.environ)
    await engine.start()
    last = None
    while True:
        state = engine.state
        if (state.phase, state.restarts) != last:
            told = {"url": engine.url, "served": [model.engine_name for model in engine.models.values()]}
            print(json.dumps(dataclasses.asdict(state) | told), flush=True)
        last = state.phase, state.restarts
        await asyncio.sleep(0.02)

asyncio.run(host())
"""


def until(condition: Callable[[], Any], *, deadline_s: float, what: str) -> Any:
    """Poll until ``condition`` is true and return it; fail when it is not in time."""
    deadline = time.monotonic() + deadline_s
    while not (met := condition()):
        assert time.monotonic() < deadline, f"not within {deadline_s} s: {what}"
        time.sleep(0.05)
    return met


class Host:
    """A gateway-like process with an engine below it, and the states it went through."""

    def __init__(self, arguments: list[str]) -> None:
        self.states: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST, *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.states.append(json.loads(line))

    @property
    def phases(self) -> list[str]:
        """Every phase so far, in order."""
        return [state["phase"] for state in self.states]

    def ready(self, *, restarts: int) -> str:
        """Wait for the boot after so many restarts, and return the engine's url."""

        def is_ready() -> bool:
            last = self.states[-1] if self.states else {}
            return (last.get("phase"), last.get("restarts")) == ("ready", restarts)

        until(is_ready, deadline_s=150, what=f"ready after {restarts} restarts; {self.states}")
        url: str = self.states[-1]["url"]
        return url

    def family(self) -> list[psutil.Process]:
        """Return the guard and everything below it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        """Kill the host, and wait until its guard has cleared up."""
        family = self.family() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        self._reader.join()
        psutil.wait_procs(family, timeout=60)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host for all tests of this file: every start of vLLM costs half a minute."""
    listed = tmp_path_factory.mktemp("adapters") / "adapters.toml"
    entry = '[[adapter]]\nname = "{0}"\nsource = "file:{1}/{0}"\nbase_model = "file:{1}/base"\n'
    listed.write_text("".join(entry.format(name, TINY) for name in ADAPTERS))
    settings = {
        "model": str(TINY / "base"),
        "command": str(VLLM),
        "max_model_len": 256,
        "enforce_eager": True,
    }
    host = Host([json.dumps(settings), str(listed)])
    yield host
    host.end()


def member(host: Host, name: str) -> psutil.Process:
    """Return the process of the engine that calls itself so."""
    return next(process for process in host.family() if name in " ".join(process.cmdline()))


def leftovers(family: list[psutil.Process]) -> list[Path]:
    """Return the shared memory and the scratch folder these processes would leave."""
    words = [word for process in family for word in process.cmdline()]
    paths = {Path(words[words.index("--config") + 1]).parent}
    for process in family:
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        paths |= {Path(line.split(maxsplit=5)[5]) for line in maps if "/dev/shm/psm_" in line}
    return sorted(paths)


def test_vllm_boots_in_phases_and_serves_the_base_and_its_adapters(host: Host) -> None:
    """The phases of a real boot come in order; then every model is listed and answers."""
    url = host.ready(restarts=0)
    boot = ["fetching", "starting", "loading", "compiling", "adapters", "probing", "ready"]
    assert host.phases == ["stopped", *boot]
    listed = httpx2.get(f"{url}/models").json()["data"]
    served = host.states[-1]["served"]
    assert [name.split("@")[0] for name in served] == ["base", *ADAPTERS]
    assert sorted(model["id"] for model in listed) == sorted(served)
    for name in served:
        answer = httpx2.post(
            f"{url}/completions", json={"model": name, "prompt": "a", "max_tokens": 2}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("restarts", "victim"), [(1, "entrypoints.launchers"), (2, "VLLM::EngineCore"), (3, "VLLM::Worker")]
)
def test_whichever_process_is_killed_the_engine_comes_back(host: Host, restarts: int, victim: str) -> None:
    """After a kill -9 the state leaves ready in seconds, nothing old is left, and the url serves again."""
    url = host.ready(restarts=restarts - 1)
    family = host.family()
    left = leftovers(family)
    member(host, victim).send_signal(signal.SIGKILL)
    until(lambda: host.states[-1]["phase"] == "failed", deadline_s=20, what="leaving ready")
    assert host.ready(restarts=restarts) == url
    assert not [process for process in family if process.is_running()]
    assert not [path for path in left if path.exists()]
    assert len(httpx2.get(f"{url}/models").json()["data"]) == 4


def test_kill_9_of_the_gateway_leaves_nothing(host: Host) -> None:
    """No process, no shared memory and no scratch folder outlives a gateway that is killed."""
    until(lambda: host.states and host.states[-1]["phase"] == "ready", deadline_s=150, what="ready")
    family = host.family()
    left = leftovers(family)
    assert len(family) >= 4
    assert len(left) >= 2
    host.process.kill()
    until(lambda: not any(process.is_running() for process in family), deadline_s=40, what="all gone")
    assert not [path for path in left if path.exists()]
