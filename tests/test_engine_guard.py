"""The guard: whatever dies, and however, nothing of the engine is left."""

import asyncio
import contextlib
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from sive_serve import engine_guard
from sive_serve.engine_boot import Boot
from sive_serve.engine_config import free_port

FAKE = Path(__file__).parent / "lab" / "fake_engine.py"
GUARD = [sys.executable, "-I", engine_guard.__file__]
SHM = Path("/dev/shm")

# Starts a guard on the gateway's kind of loop, where whatever Python does in a forked child never ends:
# as when another thread held a lock at that moment.
FORKS_BADLY = """
import asyncio, json, os, sys, threading, uvloop
from sive_serve.engine_boot import Boot
os.register_at_fork(after_in_child=threading.Event().wait)
async def main():
    boot = await Boot.start(json.loads(sys.argv[1]))
    print("started", flush=True)
    await boot.close()
uvloop.run(main())
"""

# A gateway that outlives Ctrl-C for a while, as one that drains; it tells what its guard tells.
DRAINS = """
import asyncio, json, signal, sys, uvloop
from sive_serve.engine_boot import Boot
signal.signal(signal.SIGINT, lambda *_: None)
async def main():
    boot = await Boot.start(json.loads(sys.argv[1]))
    async for event in boot.events():
        print(json.dumps(event), flush=True)
uvloop.run(main())
"""

# Starts a guard as the gateway does, hands it the job in its argument, and does nothing else.
PARENT = """
import subprocess, sys, threading
guard = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE)
guard.stdin.write(sys.argv[1].encode() + b"\\n")
guard.stdin.flush()
threading.Event().wait()
"""


def until(condition: Callable[[], Any], *, deadline_s: float = 20, what: str) -> Any:
    """Poll until ``condition`` is true and return it; fail when it is not in time."""
    deadline = time.monotonic() + deadline_s
    while not (met := condition()):
        assert time.monotonic() < deadline, f"not within {deadline_s} s: {what}"
        time.sleep(0.02)
    return met


def descriptors() -> int:
    """How many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Guarded:
    """A guard under test, what it tells, and the processes it told of."""

    def __init__(self, command: list[str], job: dict[str, Any], *, pass_job: bool = True) -> None:
        self.job = job
        self.events: list[dict[str, Any]] = []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        if pass_job:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    @property
    def phases(self) -> list[str]:
        """Every phase told, in order."""
        return [event["phase"] for event in self.events if event["event"] == "phase"]

    @property
    def told(self) -> dict[str, Any]:
        """The last word on which processes there are."""
        return [event for event in self.events if event["event"] == "pids"][-1]

    @property
    def exit(self) -> dict[str, Any] | None:
        """The exit, once it is told."""
        return next((event for event in self.events if event["event"] == "exit"), None)

    def family(self, size: int) -> list[psutil.Process]:
        """Wait until ``size`` processes are told of, and return them."""
        until(lambda: self.events and len(self.told["pids"]) == size, what=f"{size} processes told")
        return [psutil.Process(pid) for pid, _ in self.told["pids"]]

    def eof(self) -> None:
        """Close stdin, as the death of a gateway does."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> None:
        """Close stdin and wait for the end."""
        self.eof()
        self.process.wait(20)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def guard_job(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Jobs for guards over fake engines that misbehave as asked."""
    numbers = itertools.count()

    def make(*, command: list[str] | None = None, **misbehaviour: Any) -> dict[str, Any]:
        scratch = tmp_path / f"scratch{next(numbers)}"
        scratch.mkdir()
        (scratch / "left_behind.sock").touch()
        config = tmp_path / f"{scratch.name}.yaml"
        port = free_port()
        keys = {f"fake-{key}": value for key, value in misbehaviour.items()}
        config.write_text(json.dumps({"model": "m", "served-model-name": ["m"], "port": port, **keys}))
        return {
            "command": command or [sys.executable, str(FAKE), "serve", "--config", str(config)],
            "env": {},
            "port": port,
            "models": ["m"],
            "grace_s": 1,
            "scratch": str(scratch),
            "log": str(tmp_path / "engine.log"),
        }

    return make


@pytest.fixture
def guarded(guard_job: Callable[..., dict[str, Any]]) -> Iterator[Callable[..., Guarded]]:
    """Start guards over fake engines; all are ended after the test."""
    started: list[Guarded] = []

    def start(*, by_parent: bool = False, **asked: Any) -> Guarded:
        job = guard_job(**asked)
        parent = [sys.executable, "-c", PARENT, json.dumps(job), *GUARD]
        started.append(Guarded(parent if by_parent else GUARD, job, pass_job=not by_parent))
        return started[-1]

    yield start
    for guard in started:
        guard.end()


def test_phases_are_told_in_order_from_the_engines_own_lines(guarded: Callable[..., Guarded]) -> None:
    """Each phase is told once, in the order of a boot, and ready only when the models are listed."""
    guard = guarded(**{"boot-s": 0.5})
    until(lambda: "ready" in guard.phases, what="ready")
    assert guard.phases == ["starting", "loading", "compiling", "adapters", "ready"]


def test_eof_ends_every_descendant_and_its_leftovers(guarded: Callable[..., Guarded]) -> None:
    """EOF on stdin ends children, setsid grandchildren and orphans, also those that ignore TERM."""
    guard = guarded(family=True)
    family = guard.family(4)
    segment = SHM / f"fake_{guard.told['pgid']}"
    until(lambda: guard.told["segments"] == [str(segment)], what="the segment told")
    guard.eof()
    assert guard.process.wait(20) == 0
    assert not [process for process in family if process.is_running()]
    assert not segment.exists()
    assert not Path(guard.job["scratch"]).exists()


def test_kill_9_of_the_parent_ends_everything(guarded: Callable[..., Guarded]) -> None:
    """A gateway that is killed cannot clear up, and nothing of its engine or guard is left."""
    guard = guarded(by_parent=True, family=True)
    family = guard.family(4)
    segment = SHM / f"fake_{guard.told['pgid']}"
    family += psutil.Process(guard.process.pid).children()
    guard.process.kill()
    until(lambda: not any(process.is_running() for process in family), what="the family gone")
    assert not segment.exists()


def test_kill_9_of_the_guard_takes_the_engine_with_it(guarded: Callable[..., Guarded]) -> None:
    """The engine's main process never outlives its guard, whoever watches."""
    guard = guarded()
    (engine,) = guard.family(1)
    guard.process.kill()
    until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, what="the engine gone")


def test_kill_9_of_the_engine_is_told_after_its_orphans_are_gone(guarded: Callable[..., Guarded]) -> None:
    """The death is a phase at once; the exit names the signal and comes when no process is left."""
    guard = guarded(family=True)
    family = guard.family(4)
    until(lambda: "ready" in guard.phases, what="ready")
    os.kill(guard.told["pgid"], signal.SIGKILL)
    told = until(lambda: guard.exit, what="the exit told")
    assert guard.phases[-1] == "failed"
    assert (told["code"], told["signal"]) == (None, 9)
    assert not [process for process in family if process.is_running()]
    assert not (SHM / f"fake_{guard.told['pgid']}").exists()


def test_term_to_the_guard_ends_the_engine(guarded: Callable[..., Guarded]) -> None:
    """An operator may end the guard itself, and it clears up first."""
    guard = guarded(family=True)
    family = guard.family(4)
    guard.process.terminate()
    assert guard.process.wait(20) == 0
    assert not [process for process in family if process.is_running()]


def test_shared_memory_of_others_stays(guarded: Callable[..., Guarded]) -> None:
    """What was there before, and what somebody outside still maps, is not removed."""
    before = SHM / f"sive_test_before_{os.getpid()}"
    before.write_bytes(bytes(4096))
    guard = guarded(family=True, borrow=str(before))
    guard.family(4)
    shared = SHM / f"fake_{guard.told['pgid']}"
    try:
        with shared.open("r+b") as segment, mmap.mmap(segment.fileno(), 4096):
            guard.end()
            assert shared.exists()
            assert before.exists()
    finally:
        shared.unlink()
        before.unlink()


def test_a_flood_of_output_never_blocks_the_engine(guarded: Callable[..., Guarded], tmp_path: Path) -> None:
    """Output is read always: the engine gets ready behind more of it than a pipe holds."""
    guard = guarded(noise=2_000_000)
    until(lambda: "ready" in guard.phases, what="ready")
    assert (tmp_path / "engine.log").stat().st_size > 2_000_000


def test_a_failed_boot_tells_its_last_and_its_error_lines(guarded: Callable[..., Guarded]) -> None:
    """The exit carries the code, what was printed last and, apart, the lines that are errors."""
    cause = "(Worker pid=9) ERROR 11-22 07:08:03 [executor.py:1063] ValueError: LoRA rank 4 is greater"
    guard = guarded(fail=f"a line\n{cause}\nnoise at exit")
    told = until(lambda: guard.exit, what="the exit told")
    assert (told["code"], told["signal"]) == (1, None)
    assert told["last_lines"][-1] == "noise at exit"
    assert told["error_lines"] == [cause]


def test_a_command_that_is_missing_is_an_exit_like_any_other(guarded: Callable[..., Guarded]) -> None:
    """A program that cannot be run is told as code 127, with the system's words."""
    guard = guarded(command=["/nowhere/vllm"])
    told = until(lambda: guard.exit, what="the exit told")
    assert told["code"] == 127
    assert "No such file or directory: '/nowhere/vllm'" in told["last_lines"][0]
    assert not Path(guard.job["scratch"]).exists()


def test_a_foreign_server_on_the_port_is_not_the_engine(guarded: Callable[..., Guarded]) -> None:
    """Ready means that every expected model is listed, not that somebody answers 200."""
    guard = guarded()
    until(lambda: "ready" in guard.phases, what="ready")
    assert engine_guard.serves(guard.job["port"], {"m"})
    assert not engine_guard.serves(guard.job["port"], {"m", "spinoza"})


def test_the_guard_costs_next_to_nothing(guarded: Callable[..., Guarded]) -> None:
    """The guard stays below 20 MB and 0.3 s of CPU through a whole boot."""
    guard = guarded(**{"boot-s": 2})
    until(lambda: "ready" in guard.phases, what="ready")
    process = psutil.Process(guard.process.pid)
    times = process.cpu_times()
    assert process.memory_info().rss < 20e6
    assert times.user + times.system < 0.3


def test_a_guard_starts_whatever_other_threads_hold(guard_job: Callable[..., dict[str, Any]]) -> None:
    """No Python runs between fork and exec: a child that hung there would stop the loop for ever."""
    run = subprocess.Popen(
        [sys.executable, "-c", FORKS_BADLY, json.dumps(guard_job(command=["/nowhere"]))],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        said, _ = run.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        pytest.fail("the loop waits for a child that never comes to its exec")
    assert (said, run.returncode) == (b"started\n", 0)


def test_ctrl_c_is_the_gateways_alone_and_the_scheduler_sees_one_session(
    guard_job: Callable[..., dict[str, Any]],
) -> None:
    """An engine in a session of its own would be scheduled against the gateway, in a group it fills."""
    command = [sys.executable, "-c", DRAINS, json.dumps(guard_job(**{"boot-s": 1}))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as gateway:
        try:
            assert gateway.stdout is not None
            told = next(event for line in gateway.stdout if (event := json.loads(line))["event"] == "pids")
            engine = psutil.Process(told["pgid"])
            os.killpg(gateway.pid, signal.SIGINT)  # as a terminal does to its foreground group
            phases = (json.loads(line).get("phase") for line in gateway.stdout)
            assert any(phase == "ready" for phase in phases), "the engine did not live to be ready"
            assert os.getsid(engine.pid) == os.getsid(gateway.pid)
        finally:
            gateway.kill()
    psutil.wait_procs([engine], 20)
    assert not engine.is_running()


def test_a_guard_leaves_no_descriptor_open(guard_job: Callable[..., dict[str, Any]]) -> None:
    """However often an engine starts, on the gateway's own kind of loop; nor one that is closed twice."""

    async def boots() -> tuple[int, int]:
        before = 0
        for number in range(4):
            boot = await Boot.start(guard_job(command=["/nowhere"]))
            events = [event["event"] async for event in boot.events()]
            assert events[-1] == "exit"
            await boot.close()
            if number == 0:
                before = descriptors()
        return before, descriptors()

    before, after = uvloop.run(boots())
    assert after == before


def test_a_stop_before_the_job_is_handed_over_leaves_nothing(
    guard_job: Callable[..., dict[str, Any]],
) -> None:
    """No process, no scratch folder, no descriptor: whenever the start is cancelled."""
    job = guard_job(**{"boot-s": 1})
    job["env"] = {"LARGE": "x" * 300_000}  # more than a pipe holds

    async def starts(wait_s: float) -> None:
        start = asyncio.create_task(Boot.start(job))
        await asyncio.sleep(wait_s)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await start).close()  # it was quicker

    uvloop.run(starts(0.5))
    before = descriptors()
    for wait_s in (0, 0.001, 0.01, 0.05):
        Path(job["scratch"]).mkdir(exist_ok=True)
        uvloop.run(starts(wait_s))
        assert not psutil.Process().children()
        assert not Path(job["scratch"]).exists()
    assert descriptors() == before
