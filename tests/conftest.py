"""Fixtures that several files share: a running gateway, a lab upstream, the tiny models."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
TINY = Path(__file__).parent / "data" / "tiny"

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def until(is_so: Callable[[], object], seconds: float = 10, what: str = "it") -> None:
    """Wait for something observable; fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without anything that configures sive or the SDK."""
    ours = re.compile(r"^(SIVE_|OPENAI_|HF_|SNB_|IA_MODEL$|PORT$|AWS_|XDG_)")
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return kept | {"SIVE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"} | extra


@dataclass
class Served:
    """A `sive serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    output: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    def get(self, path: str, **options: object) -> httpx2.Response:
        """GET a page."""
        return httpx2.get(self.url + path, timeout=10, **options)  # type: ignore[arg-type]

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


Serve = Callable[..., Served]


@contextlib.contextmanager
def launch(folder: Path, config: str = "", *arguments: str, **environment: str) -> Iterator[Served]:
    """Run `sive serve` with a configuration text and arguments, until the block is left."""
    home = folder / f"sive-{time.monotonic_ns()}"
    home.mkdir()
    (home / "sive.toml").write_text(config)
    (home / ".venv-engine").symlink_to(ROOT / ".venv-engine")
    output = home / "output.txt"
    env = clean_environment(HOME=str(home), XDG_CACHE_HOME=str(home / "cache"), **environment)
    command = [sys.executable, "-m", "sive_serve.cli", "serve", "--port", "0", *arguments]
    with output.open("w") as out:
        process = subprocess.Popen(
            command, cwd=home, env=env, stdout=out, stderr=subprocess.STDOUT, text=True
        )
    try:
        found = re.compile(r"sive on (http://\S+)/v1")
        until(lambda: process.poll() is not None or found.search(output.read_text()), 60, "the start line")
        match = found.search(output.read_text())
        assert match, output.read_text()
        served = Served(process, match.group(1), output)
        until(lambda: _is_healthy(served), 60, "/health")
        yield served
    finally:
        _end(process)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start `sive serve` with a configuration text and arguments; stopped at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **named: stack.enter_context(launch(tmp_path, *arguments, **named))


def _is_healthy(served: Served) -> bool:
    try:
        return served.get("/health").status_code == 200
    except httpx2.HTTPError:
        return False


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
