"""An adapter brought onto the disk by the store, against obstore alone; the server is a process apart."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from sive_adapters import object_store
from sive_adapters.object_store import Patience
from sive_adapters.part import CONNECTIONS, MIB, PIECE_BYTES
from sive_adapters.sources import Source, parse
from sive_adapters.store import Store

from tests.bench.effort import Effort
from tests.bench.processes import CACHE, ROOT, clean_environment, running, wait_for_text
from tests.bench.report import Figure, Section, Table, median, shown

SIZE = 550 * MIB
"""That of rank 64 on all layers of a 14B model, in bfloat16."""

THROTTLED = 200_000_000
WEIGHTS = "adapter_model.safetensors"
FOLDER = CACHE / "adapters"
IN_MEMORY = Path("/dev/shm")

Seconds = dict[str, list[float]]


def measure(effort: Effort) -> Section:
    """Let the three ways take turns: at 200 MB/s onto the disk, and without a limit onto one in memory."""
    size = int(SIZE * effort.scale) // MIB * MIB
    _write_objects(size)
    slow = _rounds(effort.rounds, size, FOLDER / "store", "--bytes-per-s", str(THROTTLED))
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else FOLDER) as memory:
        fast = _rounds(effort.rounds, size, Path(memory) / "store")
    shutil.rmtree(FOLDER)
    return Section("adapters", _figures(slow, fast), [_table(size, slow, fast)], [_remark(size)])


def _figures(slow: Seconds, fast: Seconds) -> list[Figure]:
    def ratio(seconds: Seconds, way: str) -> list[float]:
        return [raw / ours for raw, ours in zip(seconds[way], seconds["sive"], strict=True)]

    return [
        Figure(
            "download at 200 MB/s over obstore's that keeps nothing",
            0.95,
            "x",
            ratio(slow, "memory"),
            at_least=True,
        ),
        Figure("download unlimited over obstore's to a file", 0.8, "x", ratio(fast, "disk"), at_least=True),
    ]


def _table(size: int, slow: Seconds, fast: Seconds) -> Table:
    rows = []
    for way, called in (
        ("memory", "obstore, kept nowhere"),
        ("disk", "obstore, written and synced at the end"),
        ("sive", "sive: written, synced, hashed, resumable"),
    ):
        rates = [[size / one / 1e6 for one in seconds[way]] for seconds in (slow, fast)]
        cells = [f"{shown(median(rate) or 0)} ({shown(min(rate))} to {shown(max(rate))})" for rate in rates]
        rows.append((called, *cells))
    return Table(
        "MB/s, the median (and the range) of the rounds",
        ("", "200 MB/s, onto the disk", "unlimited, onto tmpfs"),
        rows,
    )


def _remark(size: int) -> str:
    return (
        f"One file of {size // MIB} MiB over HTTP on this machine, {CONNECTIONS} connections, pieces of "
        f"{PIECE_BYTES // MIB} MiB and smaller; the server takes part of the two cores."
    )


def _rounds(rounds: int, size: int, root: Path, *arguments: str) -> Seconds:
    seconds: Seconds = {"memory": [], "disk": [], "sive": []}
    with _server(*arguments) as url:
        source = parse(f"{url}/bench/spinoza", Path())
        ways: dict[str, Callable[[Source, int], None]] = {
            "memory": _to_memory,
            "disk": _to_disk,
            "sive": _ours,
        }
        for number in range(rounds):
            print(f"adapters: round {number + 1} of {rounds} {' '.join(arguments)}", file=sys.stderr)
            for way, run in ways.items():
                began = time.monotonic()
                run(source, size, root)
                seconds[way].append(time.monotonic() - began)
                shutil.rmtree(root, ignore_errors=True)
                os.sync()
    return seconds


def _ours(source: Source, size: int, root: Path) -> None:
    version = Store(root).fetch("spinoza", source)
    assert (version.folder / WEIGHTS).stat().st_size == size


def _to_memory(source: Source, size: int, root: Path) -> None:
    asyncio.run(_raw(source, size, lambda data, at: None))


def _to_disk(source: Source, size: int, root: Path) -> None:
    root.mkdir()
    fd = os.open(root / WEIGHTS, os.O_WRONLY | os.O_CREAT)
    try:
        asyncio.run(_raw(source, size, lambda data, at: _write(fd, data, at)))
        os.fsync(fd)
    finally:
        os.close(fd)


async def _raw(source: Source, size: int, write: Callable[[memoryview, int], None]) -> None:
    """As fast as obstore goes: large ranges, as many at once as the store uses."""
    store = object_store.connect(source, Patience())
    key = f"{source.path}/{WEIGHTS}"
    left = deque(range(0, size, PIECE_BYTES))

    async def work() -> None:
        while left:
            start = left.popleft()
            data = await obstore.get_range_async(store, key, start=start, end=min(start + PIECE_BYTES, size))
            await asyncio.to_thread(write, memoryview(data), start)

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


def _write(fd: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


@contextmanager
def _server(*arguments: str) -> Iterator[str]:
    log = CACHE / "adapters.log"
    command = [sys.executable, "-m", "tests.lab.gcs", FOLDER / "objects", *arguments]
    environment = clean_environment(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with running(command, log=log, environment=environment) as process:
        yield wait_for_text(r"(http://\S+)", process, log)


def _write_objects(size: int) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    folder = FOLDER / "objects" / "bench" / "spinoza"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 64}')
    block = os.urandom(MIB)
    with (folder / WEIGHTS).open("wb") as file:
        for _ in range(size // MIB):
            file.write(block)
