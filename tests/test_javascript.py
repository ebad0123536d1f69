"""The JavaScript of clients/: its own tests under node, and its types."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

CLIENTS = ROOT / "clients"
TSC = ROOT / ".venv-callers" / "typescript" / "node_modules" / ".bin" / "tsc"
IN_CI = os.environ.get("CI") == "true"


@pytest.mark.skipif(not IN_CI and shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("folder", ["js/test", "netlify/test/page"])
def test_what_node_can_test_passes(folder: str) -> None:
    """The client on real sockets, and the parts of the page that need no browser."""
    done = subprocess.run(
        ["node", "--test", f"{CLIENTS / folder}/"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "# pass 0" not in done.stdout


@pytest.mark.skipif(not IN_CI and not TSC.exists(), reason="tests/install_callers.sh typescript")
def test_the_types_in_the_comments_are_right() -> None:
    """As a caller's editor will understand them."""
    done = subprocess.run(
        [TSC, "-p", CLIENTS / "js" / "tsconfig.json"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout
