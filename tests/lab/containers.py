"""The images of the Dockerfile as folders, and their entrypoints as processes, without Docker."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.conftest import ROOT, until
from tests.lab.dockerfile import Build, Stage
from tests.lab.engines import free_ports

NOBODY = 65532


def python_path() -> str:
    """Return a PATH whose python3 sive can use; the system's, if it can, as every user may run that."""
    found = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"],
        check=False,
        capture_output=True,
    )
    own = "" if found.returncode == 0 else f"{sys.base_prefix}/bin:"
    return f"{own}/usr/local/bin:/usr/bin:/bin" if own else "/usr/bin:/bin"


@contextmanager
def built(target: str) -> Iterator[Build]:
    """Take the steps up to a target, in a folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="sive-image-"))
    try:
        folder.chmod(0o755)
        build = Build(ROOT, folder / "image", path=python_path())
        build.target(target)
        build.forget_stages()
        yield build
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Container:
    """A stage's entrypoint, run with its environment and working folder and nothing else."""

    build: Build
    stage: Stage
    process: subprocess.Popen[str]
    output: Path
    environment: dict[str, str]

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self.output.read_text()

    @property
    def url(self) -> str:
        """Where it says it listens, seen from here."""
        until(lambda: self.process.poll() is not None or "sive on http" in self.said, 30, "the start line")
        found = re.search(r"sive on http://0\.0\.0\.0:(\d+)/v1", self.said)
        assert found, self.said
        url = f"http://127.0.0.1:{found[1]}"
        until(lambda: is_up(url), 20, "/health")
        return url

    def health(self) -> int:
        """Run its HEALTHCHECK and return the exit status."""
        command = json.loads(self.stage.last("HEALTHCHECK").rest.removeprefix("CMD "))
        run = [self.build.here(word) for word in command]
        return subprocess.run(run, env=self.environment, check=False).returncode


def free_port() -> str:
    """Return a port nobody listens on, for PORT."""
    return str(free_ports(1)[0])


def is_up(url: str) -> bool:
    """Does /health answer?"""
    try:
        return httpx2.get(f"{url}/health", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


@contextmanager
def running(build: Build, output: Path, *arguments: str, **environment: str) -> Iterator[Container]:
    """Run an image's entrypoint with arguments and variables until the block is left."""
    stage = build.stages[build.current]
    home = {name: build.here(value) for name, value in stage.environment.items()}
    env = {"PATH": "/usr/bin:/bin"} | home | environment
    command = [build.here(word) for word in stage.last("ENTRYPOINT").arguments]
    user = NOBODY if stage.all("USER") and may_become(NOBODY, command[0]) else None
    with output.open("w") as out:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=build.here(stage.last("WORKDIR").rest),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    try:
        yield Container(build, stage, process, output, env)
    finally:
        end(process)


def may_become(user: int, program: str) -> bool:
    """Can this test run a program as another user?"""
    folders = Path(program).resolve().parents
    return os.geteuid() == 0 and all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def end(process: "subprocess.Popen[str]") -> None:
    """End a process and wait for it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(url: str, model: str, key: str = "k") -> httpx2.Response:
    """One greedy answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
    return httpx2.post(
        f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=90
    )
