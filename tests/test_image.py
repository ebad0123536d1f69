"""The Dockerfile and what a builder gets: every step is a tested script, and nothing else is sent."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.containers import NOBODY
from tests.lab.dockerfile import Ignored, read, sent

STAGES = {stage.name: stage for stage in read(ROOT / "Dockerfile")}
IMAGE = ROOT / "serve" / "image"


def test_every_run_is_a_script_with_a_makefile_target() -> None:
    """What an image is made by can be run, and is tested, where there is no Docker."""
    for stage in STAGES.values():
        for step in stage.all("RUN"):
            script = Path(step.arguments[0])
            assert script.parent == Path("/opt/sive/image"), step.rest
            assert os.access(IMAGE / script.name, os.X_OK), step.rest
            wanted = subprocess.run(
                ["make", "--no-print-directory", "--dry-run", f"image-{script.stem}", "ARGS=a b"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            assert wanted.stdout.strip() == f"serve/image/{script.name} a b"


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    """Every source of a COPY exists, is tracked, and survives .dockerignore."""
    files = sent(ROOT)
    for stage in STAGES.values():
        for step in stage.all("COPY"):
            if "from" in step.flags:
                assert step.flags["from"] in STAGES
                continue
            for source in step.arguments[:-1]:
                assert (ROOT / source).exists(), source
                assert any(file == Path(source) or Path(source) in file.parents for file in files), source


def test_every_package_is_copied() -> None:
    """A package that joins the wheel joins the images too."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    copied = {step.arguments[0]: step.arguments[1] for step in STAGES["sources"].all("COPY")}
    assert set(copied) == {*listed["packages"], *listed["force-include"]}
    for folder, place in listed["force-include"].items():
        assert copied[folder] == f"/opt/sive/src/{place}"


def test_nothing_else_reaches_the_builder() -> None:
    """No secrets, no git, no virtual environments, no tests, nothing compiled here."""
    ignored = Ignored((ROOT / ".dockerignore").read_text())
    for path in (
        ".git/config",
        ".venv/bin/python3",
        ".venv-engine/lib/x.py",
        "tests/conftest.py",
        "sive.toml",
        "serve/sive.toml",
        ".env",
        "runpod/README.md",
        "clients/js/node_modules/x.js",
        "serve/sive_serve/__pycache__/app.cpython-312.pyc",
        "lora_adapters/training/corpus/spinoza.toml",
    ):
        assert Path(path) in ignored, path
    for path in ("serve/sive_serve/cli/app.py", "serve/image/venv.sh", "clients/python/sive/py.typed"):
        assert Path(path) not in ignored, path
    assert sum((ROOT / file).stat().st_size for file in sent(ROOT)) < 10_000_000


@pytest.mark.parametrize(
    ("patterns", "out", "sent_on"),
    [
        ("*\n!a/b", ["c", "a/c", "a/bc"], ["a/b", "a/b/c/d"]),
        ("**/x\n", ["x", "a/x", "a/b/x/c"], ["xa", "a/bx"]),
        ("a*\n!ab\n**/*.pyc", ["ac", "ab/c.pyc", "c.pyc"], ["ab", "ab/c", "ba"]),
        ("# a\n\n/a/?\n", ["a/b"], ["a/bc", "a"]),
    ],
)
def test_ignore_patterns_are_docker_s(patterns: str, out: list[str], sent_on: list[str]) -> None:
    """The last match decides, a folder's files go with it, and `*` ends at a slash."""
    ignored = Ignored(patterns)
    assert [path for path in out if Path(path) not in ignored] == []
    assert [path for path in sent_on if Path(path) in ignored] == []


def test_the_gateway_is_what_render_builds() -> None:
    """The last stage: non-root, checked without curl, its signals its own, with nothing run on top."""
    last = list(STAGES.values())[-1]
    assert last.name == "gateway"
    assert last.base.startswith("python:3.")
    assert "-slim" in last.base
    assert last.last("USER").rest == f"{NOBODY}:{NOBODY}"
    assert not last.all("RUN")
    assert last.last("ENTRYPOINT").rest.startswith("[")
    assert "curl" not in last.last("HEALTHCHECK").rest


def test_the_pod_is_vllm_s_image_with_another_entrypoint() -> None:
    """The engine sive is tested with, and exec form, so that signals reach the first process."""
    stage = STAGES["pod"]
    engine = (ROOT / "serve" / "install_engine.sh").read_text()
    version = re.search(r'"vllm==([\d.]+)"', engine)
    assert version
    assert stage.base == f"vllm/vllm-openai:v{version[1]}"
    assert stage.last("ENTRYPOINT").arguments[-1] == "/opt/sive/image/pod.py"
    assert not stage.all("CMD")


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile is linted."""
    hadolint = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
