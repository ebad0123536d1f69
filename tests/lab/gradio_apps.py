"""Starts the real Gradio app of the lab."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, until

PYTHON = ROOT / ".venv-callers" / "gradio" / "bin" / "python"
MISSING = "tests/install_callers.sh gradio installs it"


@dataclass
class GradioApp:
    """It runs; ``output`` is what it prints."""

    url: str
    output: Path


@contextlib.contextmanager
def gradio_app(folder: Path) -> Iterator[GradioApp]:
    """Run it until the block is left."""
    output = folder / f"gradio-{time.monotonic_ns()}.txt"
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder)}
    command = [str(PYTHON), str(ROOT / "tests" / "lab" / "gradio_app.py")]
    with output.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **quiet}, cwd=folder
        )
    try:
        line = re.compile(r"gradio on (\S+)")
        until(lambda: process.poll() is not None or line.search(output.read_text()), 60, "the Gradio app")
        found = line.search(output.read_text())
        assert found, output.read_text()
        yield GradioApp(found.group(1), output)
    finally:
        process.kill()
        process.wait()
