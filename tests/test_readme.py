"""What the README and the documentation say is true: every block is run."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest
from sive.config import Settings, load

from tests.conftest import ROOT, Serve, clean_environment, until

README = (ROOT / "README.md").read_text(encoding="utf-8")

COVERED_ELSEWHERE = {
    "make run": "test_make_run_on_a_fresh_clone",
    "make engine": "the tests marked `engine` need what it installs",
    "make test": "runs this",
    ".venv/bin/sive serve --engine": "test_engine_gateway.py",
}


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readme_is_short() -> None:
    """It can be read at one sitting."""
    assert len(README.splitlines()) <= 150


def test_the_python_blocks_run(serve: Serve, tmp_path: Path) -> None:
    """As they stand, against a gateway on another port; each prints an answer."""
    served = serve()
    for block in blocks("python"):
        result = subprocess.run(
            [sys.executable, "-c", block.replace("8000", str(served.port))],
            cwd=tmp_path,
            env=clean_environment(HOME=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert len(result.stdout) > 40


def test_the_shell_blocks_run(serve: Serve) -> None:
    """Every command that is not covered by a test of its own, line by line."""
    served = serve()
    lines = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    ran = 0
    for line in filter(None, lines):
        if line.startswith(tuple(COVERED_ELSEWHERE)):
            continue
        command = line.replace("8000", str(served.port)).replace(
            ".venv/bin/sive", f"{sys.executable} -m sive_serve.cli"
        )
        result = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, (line, result.stderr)
        assert (result.stdout + result.stderr).strip(), line
        ran += 1
    assert ran >= 5


def test_the_toml_blocks_are_configurations(tmp_path: Path) -> None:
    """They load, and every key in them is known."""
    for block in blocks("toml"):
        (tmp_path / "sive.toml").write_text(block)
        assert load(tmp_path / "sive.toml", environ={"SIVE_POD_KEY": "k"}).settings.model
    for block in blocks("json"):
        assert set(json.loads(block)) == {"backend", "degraded", "resumed", "truncated", "dropped"}


def test_every_setting_is_documented() -> None:
    """docs/configuration.md names every key."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for section in ("gateway", "local"):
        keys = set(getattr(Settings(), section).model_dump()) - {"api_keys", "admin_keys", "token_secrets"}
        assert not {key for key in keys if f"`{key}`" not in text}


def test_links_lead_somewhere() -> None:
    """Relative links in the README exist."""
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_nothing_names_this_machine_or_a_registry() -> None:
    """Tracked text files carry no path of a developer's machine and no registry's address."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".bin", ".safetensors", ".png"} or name == "tests/test_readme.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"/work/|/opt/(pypi|wheels)|/root/|pypi\.org|files\.pythonhosted|registry\.npmjs", text
        ), name


@pytest.mark.timeout(400)
def test_make_run_on_a_fresh_clone(tmp_path: Path) -> None:
    """From nothing to an answer: installs, serves on PORT, ends on SIGTERM; the install stays small."""
    clone = tmp_path / "clone"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    output = tmp_path / "output.txt"
    environment = clean_environment(PORT="0", HOME=str(tmp_path), PYTHON=_base_python())
    environment.pop("VIRTUAL_ENV", None)
    with output.open("w") as out:
        process = subprocess.Popen(
            ["make", "run", f"PYTHON={_base_python()}"],
            cwd=clone,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(
            lambda: process.poll() is not None or "sive on http" in output.read_text(),
            300,
            "make run serving",
        )
        found = re.search(r"sive on (\S+)", output.read_text())
        assert found, output.read_text()
        body = {"model": "spinoza", "messages": [{"role": "user", "content": "What is joy?"}]}
        answer = httpx2.post(f"{found.group(1)}/chat/completions", json=body, timeout=30)
        assert answer.json()["choices"][0]["message"]["content"]
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
    subprocess.run(
        [clone / ".venv/bin/python", "-m", "compileall", "-q", clone / ".venv"],
        check=False,
        stdout=subprocess.DEVNULL,
    )
    size = sum(path.lstat().st_blocks * 512 for path in (clone / ".venv").rglob("*") if not path.is_symlink())
    assert size <= 400_000_000, f"{size / 1e6:.0f} MB"
    assert not list((clone / ".venv").rglob("torch")), "torch was installed"


def _base_python() -> str:
    """The interpreter that this virtual environment was made from."""
    return str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")


def test_the_version_is_one(tmp_path: Path) -> None:
    """The package, pyproject.toml and the command line agree."""
    import sive

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == sive.__version__
