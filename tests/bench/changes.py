"""Adapters of a real engine on this CPU: exchanged under callers, and fifty of them after a restart."""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx2

from tests.bench.effort import Effort
from tests.bench.processes import Missing
from tests.bench.report import Figure, Section, Table, cell
from tests.conftest import TINY, launch
from tests.lab.engines import VLLM, Pod, free_ports
from tests.lab.swaps import CHANGED, OTHER, VERSIONS, Crowd, Heard, changing_pod, listen, swap, wrong

SWAPS, CALLERS = 200, 8
ADAPTERS = 50
QUIET_S = 20.0
ALLOWED_S = 0.05
CONFIG = """
[engine]
model = "{tiny}/base"
adapters = "{folder}/adapters.toml"
max_model_len = 256
max_loras = 8
port = {port}
"""


def measure(effort: Effort) -> Section:
    """Callers before and during the changes; then an engine with fifty adapters is killed and comes back."""
    if not VLLM.is_file():
        raise Missing("there is no vLLM here: make engine")
    section = Section("changes")
    with tempfile.TemporaryDirectory(prefix="sive-bench-") as folder:
        _exchange(section, Path(folder), max(4, int(SWAPS * effort.scale)))
    with tempfile.TemporaryDirectory(prefix="sive-bench-") as folder:
        _return(section, Path(folder), effort.rounds)
    return section


def _exchange(section: Section, folder: Path, count: int) -> None:
    with changing_pod(folder) as pod:
        with httpx2.Client(timeout=120) as client:
            texts = {}
            for version in VERSIONS:
                swap(pod, 1, first=version)
                texts[version] = listen(client, pod, CHANGED).text
            swap(pod, 1, first=VERSIONS[0])
        crowd = Crowd(pod)
        crowd.start(**{CHANGED: CALLERS, OTHER: CALLERS})
        began = time.monotonic()
        time.sleep(QUIET_S)
        print(f"changes: {count} exchanges", file=sys.stderr)
        swaps = swap(pod, count)
        crowd.stop()
    usual = _gaps(crowd.heard[OTHER], began, swaps[0].began)
    during = _gaps(crowd.heard[OTHER], swaps[0].began, swaps[-1].ended)
    limit_ms = 1e3 * max(2 * usual, usual + ALLOWED_S)
    name = "p99 gap between tokens of another adapter while one is exchanged"
    section.figures.append(Figure(name, round(limit_ms, 1), "ms", [1e3 * during]))
    answers = sum(len(heard) for heard in crowd.heard.values())
    broken = sum(not one.is_complete for one in crowd.heard[OTHER])  # those of the other `wrong` counts
    faults = wrong(crowd.heard[CHANGED], swaps, texts)
    for fault, times in Counter(faults).most_common():
        print(f"changes: {times} times: {fault}", file=sys.stderr)
    name = "answers that failed or came from the wrong version"
    section.figures.append(Figure(name, 0, "", [len(faults) + broken]))
    seconds = sorted(one.ended - one.began for one in swaps)
    row = (str(count), str(answers), cell(1e3 * usual), cell(1e3 * during))
    row += (cell(seconds[len(seconds) // 2]), cell(seconds[-1]))
    header = (
        "exchanges",
        "answers",
        "p99 gap before ms",
        "p99 gap during ms",
        "an exchange s",
        "the longest s",
    )
    section.tables.append(Table(f"{2 * CALLERS} streams at once.", header, [row]))


def _gaps(heard: list[Heard], began: float, ended: float) -> float:
    """The 99th percentile of the gaps of answers that lie within this time, in seconds."""
    gaps = sorted(gap for one in heard if one.began >= began and one.ended <= ended for gap in one.gaps)
    if not gaps:
        raise Missing("no answer was heard from its beginning to its end")
    return gaps[int(0.99 * (len(gaps) - 1))]


def _return(section: Section, folder: Path, rounds: int) -> None:
    """Kill an engine with many adapters, and read in sive's log how long they took to be back."""
    entries = []
    for number in range(ADAPTERS):
        name = f"voice-{number:02}"
        shutil.copytree(TINY / VERSIONS[number % 2], folder / name)
        weights = folder / name / "adapter_model.safetensors"
        raw = bytearray(weights.read_bytes())
        raw[-4] ^= number % 16  # the last bits of a value: another version, the same voice
        weights.write_bytes(raw)
        source = f'source = "file:{name}"\nbase_model = "file:{TINY}/base"\n'
        entries.append(f'[[adapter]]\nname = "{name}"\n{source}')
    (folder / "adapters.toml").write_text("\n".join(entries))
    (port,) = free_ports(1)
    with launch(folder, CONFIG.format(tiny=TINY, folder=folder, port=port)) as served:
        pod = Pod(served, port)
        pod.wait_ready()
        for number in range(rounds):
            print(f"changes: return {number + 1} of {rounds}", file=sys.stderr)
            os.kill(pod.member("core").pid, signal.SIGKILL)
            pod.wait_ready(restarts=number + 1)
        said = served.get("/status").json()["engine"]["adapters"]
        output = served.output.read_text()
    serving = sum(one["phase"] == "serving" for one in said.values())
    if serving != ADAPTERS:
        raise Missing(f"only {serving} of {ADAPTERS} adapters were served")
    at = [float(text) for text in re.findall(r"engine: adapters after ([0-9.]+) s", output)]
    ready = [float(text) for text in re.findall(r"engine: ready after ([0-9.]+) s", output)]
    took = [later - earlier for earlier, later in zip(at, ready, strict=True)][1:]
    section.figures.append(Figure(f"{ADAPTERS} adapters loaded and proved after a restart", 10, "s", took))
