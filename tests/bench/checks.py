"""`sive adapters check` on the largest usual adapter: rank 64 over all layers of a 14B model, 550 MB."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sive_adapters.base_model import BaseModel, read_base_model
from sive_adapters.check import check

from tests.bench.effort import Effort
from tests.bench.processes import CACHE, ROOT, Missing, clean_environment
from tests.bench.report import Figure, Section

RANK = 64
BASE, ADAPTER = CACHE / "qwen-14b-shaped", CACHE / f"qwen-14b-shaped-rank-{RANK}"
QWEN_14B = {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
}


def measure(effort: Effort) -> Section:
    """Check the adapter ``rounds`` times from the page cache and from the disk, and once by the command."""
    base = _base()
    _make(base)
    cached, cold = [], []
    for number in range(effort.rounds):
        print(f"checks: round {number + 1} of {effort.rounds}", file=sys.stderr)
        cached.append(_check_s(base))
        _forget(ADAPTER / "adapter_model.safetensors")
        cold.append(_check_s(base))
    size = (ADAPTER / "adapter_model.safetensors").stat().st_size / 1e6
    section = Section("checks")
    section.figures = [
        Figure(f"checks of an adapter of {size:.0f} MB, in the page cache", 3, "s", cached),
        Figure(f"checks of an adapter of {size:.0f} MB, from the disk", 3, "s", cold),
    ]
    section.remarks = [f"`sive adapters check` in all, its start included: {_command_s():.2f} s, once."]
    shutil.rmtree(ADAPTER)
    return section


def _base() -> BaseModel:
    BASE.mkdir(parents=True, exist_ok=True)
    (BASE / "config.json").write_text(json.dumps(QWEN_14B))
    base = read_base_model(str(BASE))
    if base is None:
        raise Missing("the base model's shapes are not known")
    return base


def _make(base: BaseModel) -> None:
    shutil.rmtree(ADAPTER, ignore_errors=True)
    ADAPTER.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in base.modules}),
    }
    (ADAPTER / "adapter_config.json").write_text(json.dumps(config))
    entries, at = {}, 0
    for name, shape in _shapes(base):
        size = 2 * shape[0] * shape[1]
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    noise = np.random.default_rng(1).normal(0, 0.02, 2**22).astype(np.float32)
    block = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (ADAPTER / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, at, len(block)):
            file.write(block[: at - start])
        os.fsync(file.fileno())


def _shapes(base: BaseModel) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, (into, out) in base.modules.items():
        yield f"base_model.model.{name}.lora_A.weight", (RANK, into)
        yield f"base_model.model.{name}.lora_B.weight", (out, RANK)


def _check_s(base: BaseModel) -> float:
    began = time.monotonic()
    findings = check(ADAPTER, base, max_lora_rank=RANK)
    seconds = time.monotonic() - began
    if findings:
        raise Missing(f"the adapter that was made is not sound: {findings[0].message}")
    return seconds


def _command_s() -> float:
    command = [sys.executable, "-m", "sive_serve.cli", "adapters", "check", str(ADAPTER), "--base", str(BASE)]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=clean_environment(), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _forget(file: Path) -> None:
    """Drop a file's pages, so that it is read from the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
