"""The programs a benchmark starts: on free ports, on the cores they are given, and ended by their own id."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "bench"
KEY = "sk-bench"

_OURS = re.compile(r"^(SIVE_|OPENAI_|HF_|SNB_|IA_MODEL$|PORT$|AWS_|XDG_|LITELLM_)")


class Missing(Exception):  # noqa: N818 - it is no error: the rest is still measured
    """Something a benchmark needs is not there; the text says what, and how to get it."""


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what configures sive, the SDKs or LiteLLM."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.match(name)}
    return kept | {"SIVE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"} | extra


def free_port() -> int:
    """A port of the loopback interface nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """A port of the loopback interface that refuses whoever comes, kept from others by us."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def two_cores() -> tuple[int, int]:
    """One core for clients and upstreams, one for the server that is measured."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Missing("this benchmark needs two cores: one for the server, one for client and upstream")
    return cores[0], cores[1]


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started inside runs on this core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A program whose output goes to ``log``, in a session of its own; it ends with the block.

    Its standard input is a pipe of ours, which breaks when we die.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output, on_core(core):
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=log.parent,
            env=dict(environment) if environment is not None else clean_environment(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: "subprocess.Popen[str]") -> None:
    """Stop a program and whatever it started."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


def wait_for_port(port: int, process: "subprocess.Popen[str]", log: Path, seconds: float = 120) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        _check(process, log, deadline)


def wait_for_text(pattern: str, process: "subprocess.Popen[str]", log: Path, seconds: float = 30) -> str:
    """Wait until the output holds the pattern; returns its first group."""
    deadline = time.monotonic() + seconds
    while not (found := re.search(pattern, log.read_text())):
        _check(process, log, deadline)
    return found.group(1)


def _check(process: "subprocess.Popen[str]", log: Path, deadline: float) -> None:
    if process.poll() is not None or time.monotonic() > deadline:
        raise Missing(f"{process.args!r} did not start: {log.read_text()[-2000:]}")
    time.sleep(0.005)


@dataclass(frozen=True)
class Served:
    """A server that is being measured."""

    name: str
    port: int
    pid: int

    @property
    def cpu_s(self) -> float:
        """CPU seconds that it and its children took."""
        return sum(sum(one.cpu_times()[:2]) for one in _family(self.pid))

    @property
    def rss_mb(self) -> float:
        """Resident memory now."""
        return sum(one.memory_info().rss for one in _family(self.pid)) / 1e6

    @property
    def peak_rss_mb(self) -> float:
        """The most memory that its first process ever held (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024 / 1e6


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
