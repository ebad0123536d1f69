"""Lighthouse, which looks at a page as a slow phone would: four scores from 0 to 100."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import until
from tests.lab import browser

PROGRAM = browser.PLACES / "lighthouse" / "node_modules" / "lighthouse" / "cli" / "index.js"
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")


@dataclass(frozen=True)
class Verdict:
    """``scores`` by category; ``wanting``: the audits that were not passed in full, with what each scored."""

    scores: dict[str, float]
    wanting: dict[str, float]


@contextmanager
def _chromium(port: int, folder: Path) -> Iterator[None]:
    """A browser without Playwright, which holds only one at a time."""
    home = f"--user-data-dir={folder / 'chromium'}"
    command = [
        str(browser.CHROMIUM),
        "--headless=new",
        *browser.FLAGS,
        f"--remote-debugging-port={port}",
        home,
    ]
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*command, "about:blank"], stdout=quiet, stderr=quiet) as process:
        try:
            until(lambda: _listens(port), 30, "chromium")
            yield
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def judged(url: str, folder: Path) -> Verdict:
    """Look at a page in a browser of its own."""
    report = folder / "lighthouse.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["node", str(PROGRAM), url, f"--port={port}", "--output=json", f"--output-path={report}"]
    command += ["--quiet", "--no-enable-error-reporting", f"--only-categories={','.join(CATEGORIES)}"]
    with _chromium(port, folder):
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text())
    scores = {name: 100.0 * told["categories"][name]["score"] for name in CATEGORIES}
    audits = {audit["id"]: audit["score"] for audit in told["audits"].values()}
    return Verdict(scores, {name: score for name, score in audits.items() if score not in (None, 1)})
