"""Starts the real Gradio app of the lab."""

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.conftest import ROOT, clean_environment, until

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
    assert PYTHON.exists(), MISSING
    output = folder / f"gradio-{time.monotonic_ns()}.txt"
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
    command = [str(PYTHON), str(ROOT / "tests" / "lab" / "gradio_app.py")]
    with output.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=clean_environment(**quiet), cwd=folder
        )
    try:
        line = re.compile(r"gradio on (\S+)")
        until(lambda: process.poll() is not None or line.search(output.read_text()), 60, "the Gradio app")
        found = line.search(output.read_text())
        assert found, output.read_text()
        httpx2.get(f"{found.group(1)}/gradio_api/info", timeout=60).raise_for_status()  # it makes it up once
        yield GradioApp(found.group(1), output)
    finally:
        process.kill()
        process.wait()
