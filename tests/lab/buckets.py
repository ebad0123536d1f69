"""An adapter in a folder, the object store over it, and the environment that leads there."""

import os
import signal
from pathlib import Path

from sive_adapters.object_store import Patience

from tests.lab.gcs import ObjectStore

MIB = 2**20
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
QUICK = Patience(connect_s=2, stall_s=1, tries=4, pause_s=0.01, longest_pause_s=0.05)
"""For a store on this machine."""

VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "AZURITE_", "STORAGE_EMULATOR_HOST", "HF_")


def write_adapter(folder: Path, size: int = 1000, seed: int = 0) -> Path:
    """Write the two files of an adapter, with random bytes as weights, and what nobody fetches.

    As in a store, whoever still reads the old ones goes on reading the old ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = os.urandom(MIB) * (size // MIB) if size > MIB else os.urandom(size)
    put(folder / CONFIG, f'{{"peft_type": "LORA", "r": 8, "seed": {seed}}}'.encode())
    put(folder / WEIGHTS, weights)
    (folder / "optimizer.pt").write_bytes(b"not wanted")
    (folder / "checkpoint-1").mkdir(exist_ok=True)
    (folder / "checkpoint-1" / WEIGHTS).write_bytes(b"not wanted")
    return folder


def put(file: Path, content: bytes) -> None:
    """Put an object in the place of another."""
    beside = file.with_name(f".{file.name}")
    beside.write_bytes(content)
    beside.replace(file)


def environment(lab: ObjectStore) -> dict[str, str]:
    """What leads obstore to this store for s3, gs and az."""
    return {
        "AWS_ENDPOINT_URL": lab.url,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "STORAGE_EMULATOR_HOST": lab.url,
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": lab.url,
    }


def hears_ctrl_c() -> None:
    """Before a program is started: a shell lets what runs in its background ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
