"""Weights that vLLM reads straight from an object store onto the GPU, with no disk between."""

import subprocess
from collections.abc import Collection
from pathlib import Path

SCHEMES = {
    "s3": "runai_model_streamer_s3",
    "gs": "runai_model_streamer_gcs",
    "az": "runai_model_streamer_azure",
}
"""What each needs beside ``runai_model_streamer``; ``pip install 'vllm[runai]'`` brings them."""

CORE = "runai_model_streamer"
ASK_S = 30.0

_PROGRAM = (
    "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
)


def streamer_modules(python: Path) -> frozenset[str]:
    """Return which modules of the streamer the engine's own Python has; none where it cannot be asked."""
    command = [str(python), "-c", _PROGRAM, CORE, *SCHEMES.values()]
    try:
        done = subprocess.run(  # noqa: S603 - the engine's interpreter, our own words
            command, capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(done.stdout.split())


def streamed(model: str, modules: Collection[str]) -> dict[str, str] | None:
    """Return vLLM's configuration that streams a model, None when its weights have to be fetched first."""
    scheme = model.partition("://")[0]
    if scheme not in SCHEMES or CORE not in modules or SCHEMES[scheme] not in modules:
        return None
    return {"model": model, "load-format": "runai_streamer"}
