"""Why an engine died, in at most three lines a person can act on."""

import re
from collections.abc import Sequence

MAX_LINES, LINE_CHARS = 3, 300
PREFIX = re.compile(r"^(\(\S+ pid=\d+\) )?((ERROR|WARNING|INFO) [\d: -]+\[\S+\] )?")
# vLLM's processes report each other's deaths; only the first of them knows the cause.
ECHOES = (
    "See root cause above",
    "See stack trace for root cause",
    "check the stack trace above",
    "See stack trace (above)",
)

KNOWN = (
    (
        r"No module named '?vllm",
        "vLLM is not installed in the engine's environment: run `make engine`",
    ),
    (
        r"No such file or directory: '.*(vllm|python)'|Permission denied: '.*(vllm|python)'",
        "the engine's program cannot be run: run `make engine`, or set command under [engine]",
    ),
    (
        r"Address already in use",
        "the engine's port is taken by another program: stop it, or set port under [engine]",
    ),
    (
        r"LoRA rank \d+ is greater than max_lora_rank",
        "an adapter's rank is above the engine's: raise max_lora_rank under [engine]",
    ),
    (
        r"out of memory|OutOfMemoryError|No available memory for the cache blocks|less than requested memory"
        r"|Free memory on device",
        "the engine has too little memory: lower max_model_len, max_loras or gpu_memory_utilization (on CPU "
        "VLLM_CPU_KVCACHE_SPACE), or end what else uses it",
    ),
    (
        r"Cannot find any model weights|No such file or directory: '.*\.safetensors'",
        "the model's folder has no weights: correct model under [engine]",
    ),
    (
        r"LocalEntryNotFoundError|RepositoryNotFoundError|GatedRepoError|HFValidationError|RevisionNotFoundError"
        r"|is not a local folder",
        "the model cannot be had: correct model under [engine], download it, or set HF_TOKEN if it is gated",
    ),
    (
        r"error: unrecognized arguments",
        "vLLM does not know a key: correct it under [engine]",
    ),
)


def explain(
    *, code: int | None, signal: int | None, error_lines: Sequence[str], last_lines: Sequence[str]
) -> str:
    """Return the cause and the way out when it is known, else what vLLM said last."""
    errors = _clean(error_lines)
    for pattern, advice in KNOWN:
        for line in [*errors, *_clean(last_lines)]:
            if re.search(pattern, line):
                return f"{advice}\n{line}"
    end = f"the engine was killed by signal {signal}" if signal else f"the engine exited with code {code}"
    if signal == 9:
        end += " (the system does that when memory runs out)"
    causes = [line for line in errors if not any(echo in line for echo in ECHOES)]
    said = (causes or _clean(last_lines))[-(MAX_LINES - 1) :]
    return "\n".join([end, *said])


def _clean(lines: Sequence[str]) -> list[str]:
    """Drop what vLLM prints before a message, and repetitions."""
    return list(dict.fromkeys(PREFIX.sub("", line).strip()[:LINE_CHARS] for line in lines))
