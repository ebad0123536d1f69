"""Our two C programs: an upstream and a load client that are not the bottleneck."""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.processes import CACHE, KEY, Missing, Served, on_core

SOURCES = Path(__file__).parent
WARM_UP_S = 0.4
"""As in load.c."""

SETTLE_S, IDLE_CPU = 30.0, 0.1

Row = dict[str, Any]


def build(name: str) -> Path:
    """Compile ``upstream`` or ``load``."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Missing("there is no C compiler: apt-get install gcc libc6-dev")
    CACHE.mkdir(parents=True, exist_ok=True)
    program = CACHE / name
    warnings = ("-Wall", "-Wextra")
    subprocess.run([compiler, "-O2", *warnings, "-o", program, SOURCES / f"{name}.c"], check=True)
    return program


@dataclass(frozen=True)
class Load:
    """One way to press on a server, for so many seconds or until it gave so many ``answers``."""

    name: str
    connections: int
    seconds: float
    body: Path
    answers: int | None = None

    def on(self, server: Served, client: Path, core: int) -> Row:
        """Run the client; its line of JSON, and how the server's core fared meanwhile."""
        command = [client, str(server.port), str(self.connections), str(self.seconds), KEY, str(self.body)]
        command += [] if self.answers is None else [str(self.answers)]
        limit_s = self.seconds + 30
        cpu_s = server.cpu_s
        with on_core(core):
            done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=limit_s)
        row: Row = json.loads(done.stdout)
        cpu_s = server.cpu_s - cpu_s
        _settle(server)
        row["server_cpu"] = cpu_s / (self.seconds + WARM_UP_S)
        row["cpu_per_answer_us"] = 1e6 * cpu_s / row["answers_ever"] if row["answers_ever"] else None
        row["cpu_per_chunk_us"] = 1e6 * cpu_s / row["chunks_ever"] if row["chunks_ever"] else None
        row["peak_rss_mb"] = server.peak_rss_mb
        return row


def wrong_answers(rows: Mapping[tuple[str, str], Sequence[Row]]) -> list[str]:
    """A remark for each load, by its name and the server's, whose answers were not all right."""
    wrong = {key: sum(row["errors"] for row in found) for key, found in rows.items()}
    return [
        f"{count} answers of {server} were wrong ({load})."
        for (load, server), count in wrong.items()
        if count
    ]


def _settle(server: Served) -> None:
    """Wait until it no longer works for callers who are gone: LiteLLM does, for seconds."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        cpu_s = server.cpu_s
        time.sleep(0.2)
        if server.cpu_s - cpu_s <= IDLE_CPU * 0.2:
            return
