"""``serve/image/venv.sh``: what it refuses to install, and that it makes do with what a base image has."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.containers import python_path

SCRIPT = ROOT / "serve" / "image" / "venv.sh"
LOCK = (ROOT / "serve" / "requirements.lock").read_text("utf-8")
ONE = LOCK[LOCK.index("idna==") :].split("\n", 1)[0].removesuffix("\\").strip()
HASHES = [line.strip(" \\") for line in LOCK[LOCK.index("idna==") :].splitlines()[1:3]]


def take(lock: Path, folder: Path, path: str) -> "subprocess.CompletedProcess[str]":
    """Run the step with that PATH and nothing else."""
    command = [str(SCRIPT), str(folder / "venv"), str(lock)]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock of one small package, with its hashes."""
    assert all(line.startswith("--hash=sha256:") for line in HASHES)
    file = tmp_path / "one.lock"
    file.write_text(f"{ONE} {' '.join(HASHES)}\n")
    return file


def python3(folder: Path, refused: str, *, instead: str = "exit 1") -> str:
    """Return a PATH whose python3 fails, or does something else, when its arguments match a shell pattern."""
    real = subprocess.run(
        ["/bin/sh", "-c", "command -v python3"],
        env={"PATH": python_path()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    program = folder / "bin" / "python3"
    program.parent.mkdir()
    instead = instead.replace("REAL", real)
    program.write_text(f'#!/bin/sh\ncase "$*" in {refused}) {instead} ;; esac\nexec {real} "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


def installed(folder: Path) -> list[str]:
    """Return the names of the packages in the environment."""
    return sorted(
        path.name.split("-")[0] for path in folder.glob("venv/lib/python3*/site-packages/*.dist-info")
    )


def test_what_is_locked_is_installed(lock: Path, tmp_path: Path) -> None:
    """And nothing besides: not even pip."""
    assert take(lock, tmp_path, python_path()).returncode == 0
    assert installed(tmp_path) == ["idna"]


@pytest.mark.parametrize("hashes", ["", f"--hash=sha256:{'0' * 64}"])
def test_another_file_than_the_locked_one_is_refused(lock: Path, tmp_path: Path, hashes: str) -> None:
    """A hash that is missing or wrong ends the step."""
    lock.write_text(f"{ONE} {hashes}\n")
    ran = take(lock, tmp_path, python_path())
    assert ran.returncode != 0
    assert "hash" in ran.stderr.lower()
    assert installed(tmp_path) == []


def test_a_python_without_pip_will_do(lock: Path, tmp_path: Path) -> None:
    """Where venv can make an environment with pip, that one is borrowed, and not left behind."""
    path = python3(tmp_path, '"-m pip"*')
    assert take(lock, tmp_path, path).returncode == 0
    assert installed(tmp_path) == ["idna"]


def test_uv_will_do(lock: Path, tmp_path: Path) -> None:
    """Where there is neither pip nor ensurepip: the same lock, hashes and wheels, into the same folder."""
    path = python3(tmp_path, '"-m pip"*|"-m venv /"*')
    uv = tmp_path / "bin" / "uv"
    uv.write_text('#!/bin/sh\necho "$@"\n')
    uv.chmod(0o755)
    ran = take(lock, tmp_path, path)
    assert ran.returncode == 0, ran.stderr
    for said in (
        f"--python {tmp_path}/venv/bin/python3",
        "--require-hashes",
        "--only-binary :all:",
        str(lock),
    ):
        assert said in ran.stdout


def test_without_any_it_says_what_to_add(lock: Path, tmp_path: Path) -> None:
    """One line on stderr."""
    ran = take(lock, tmp_path, python3(tmp_path, '"-m pip"*|"-m venv /"*'))
    assert ran.returncode == 1
    assert ran.stderr == f"nothing here can install {lock}: add pip, python3-venv or uv\n"


def test_an_old_python_is_refused(lock: Path, tmp_path: Path) -> None:
    """Before anything is made."""
    older = 'exec REAL -c "import sys; sys.version_info = (3, 10, 14); $2"'
    ran = take(lock, tmp_path, python3(tmp_path, '"-c "*', instead=older))
    assert ran.returncode == 1
    assert "sive needs Python 3.11 or newer" in ran.stderr
    assert not (tmp_path / "venv").exists()
