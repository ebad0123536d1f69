"""A real browser: Debian's chromium, driven by Playwright from a place of its own."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    Browser = Context = Page = Any

PLACES = ROOT / ".venv-callers"
CHROMIUM = shutil.which("chromium")
AXE = PLACES / "axe" / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOW = "tests/install_callers.sh chromium playwright axe"


def is_there() -> bool:
    """Is all of it installed? From then on Playwright can be imported."""
    site = next(PLACES.glob("playwright/lib/python3*/site-packages"), None)
    if site is None or CHROMIUM is None or not AXE.exists():
        return False
    if str(site) not in sys.path:
        sys.path.append(str(site))  # after our own packages, of which it brings a few
    return True


def need() -> None:
    """Skip this file where there is no browser, and say how to get one; in CI it must be there."""
    if is_there():
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"no browser: {HOW}", pytrace=False)
    pytest.skip(f"no browser: {HOW}", allow_module_level=True)


@contextmanager
def browser(*more: str) -> Iterator["Browser"]:
    """Chromium without a window, with more flags."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *more])
        try:
            yield chromium
        finally:
            chromium.close()


class Visit:
    """One visitor: a context of its own, and all that went wrong in it."""

    def __init__(self, chromium: "Browser", **options: Any) -> None:
        self.context: Context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB"} | options
        )
        self.complaints: list[str] = []
        self.context.set_default_timeout(20_000)

    def _hear(self, line: Any) -> None:
        # Cancelling and leaving race: what the second of them is for may be over.
        if line.type == "error" and not line.location["url"].endswith("/cancel"):
            self.complaints.append(line.text)

    def tab(self, url: str) -> "Page":
        """A page on which the question can be typed."""
        page = self.context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message) or dialog.dismiss())
        page.goto(url)
        page.wait_for_selector("#questions button", state="attached")
        return page


def violations(page: "Page") -> list[str]:
    """What axe-core finds against WCAG 2.2 AA and good practice."""
    # A script that was typed in is not bound by the page's policy, as one in the page would be.
    page.evaluate(f"{Path(AXE).read_text()};0")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)["violations"]
    return [f"{one['id']}: {[node['html'][:200] for node in one['nodes']]}" for one in found]
