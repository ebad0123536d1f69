"""From nothing to the first token, and what an installation weighs."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.bench import client, servers
from tests.bench.effort import Effort
from tests.bench.processes import CACHE, ROOT, Missing
from tests.bench.report import Figure, Section

LOCK = ROOT / "serve" / "requirements.lock"


def measure(effort: Effort) -> Section:
    """Start the server with its embedded model ``rounds`` times, then look at a fresh installation."""
    section = Section("start")
    seconds = []
    for number in range(effort.rounds):
        print(f"start: round {number + 1} of {effort.rounds}", file=sys.stderr)
        seconds.append(_first_token_s())
    section.figures.append(Figure("first token after the process starts, embedded model", 2, "s", seconds))
    try:
        size = Figure("light installation, with bytecode", 400, "MB", [_installed_mb()])
        section.figures.append(size)
    except Missing as missing:
        section.remarks.append(f"Not measured: {missing}")
    return section


def _first_token_s() -> float:
    began = time.monotonic()
    with servers.sive(name="sive-start") as served:
        return client.stream(served.port, "Whatsoever is,", 4).texts_at[0] - began


def _installed_mb() -> float:
    """The disk space of `make run`'s .venv, made anew, every module compiled."""
    venv = CACHE / "light"
    shutil.rmtree(venv, ignore_errors=True)
    python = venv / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", venv],
        [*pip, "--require-hashes", "-r", LOCK],
        [*pip, "--no-deps", "--editable", ROOT],
        [python, "-m", "compileall", "-q", venv / "lib"],
    ):
        print(f"start: {' '.join(Path(str(part)).name for part in command)}", file=sys.stderr)
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if (
            done.returncode and "compileall" not in command
        ):  # some packages ship templates that do not compile
            raise Missing(f"a fresh installation: {done.stderr.strip().splitlines()[-1:]}")
    used = sum(path.lstat().st_blocks * 512 for path in venv.rglob("*"))
    shutil.rmtree(venv)
    return used / 1e6
