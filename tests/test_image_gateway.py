"""The gateway's image, made in a clean folder with an empty environment, and run as in a container."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.containers import Container, ask, built, free_port, python_path, running
from tests.lab.dockerfile import Build
from tests.test_local_convert import write_gpt2

BASE_MB = 50  # python:3.12-slim on Docker Hub, compressed, rounded up
LIMIT_MB = 250
TOOLS = ("pip", "setuptools", "wheel", "hatchling", "torch", "vllm", "pytest")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Build]:
    """The gateway's image as a folder."""
    with built("gateway") as build:
        yield build


Start = Callable[..., Container]


@pytest.fixture
def start(gateway: Build, tmp_path: Path) -> Iterator[Start]:
    """Run the image's entrypoint with arguments and variables; ended with the test."""
    with ExitStack() as stack:
        yield lambda *said, **env: stack.enter_context(
            running(gateway, tmp_path / f"{len(list(tmp_path.iterdir()))}.txt", *said, **env)
        )


def test_the_gateway_answers(start: Start) -> None:
    """From nothing but a key: it listens on PORT, is healthy, answers those who have the key, and stops."""
    port = free_port()
    container = start(SIVE_API_KEYS="k", PORT=port, SIVE_OFFLINE="1")
    assert container.url.endswith(f":{port}")
    assert container.health() == 0
    assert ask(container.url, "spinoza").headers["x-sive-backend"] == "local"
    assert ask(container.url, "spinoza", key="wrong").status_code == 401
    container.process.terminate()
    assert container.process.wait(30) == 0, container.said
    assert container.health() == 1


def test_a_gateway_without_keys_says_which(start: Start) -> None:
    """One line that names the variable, and a status that is not 0."""
    container = start()
    assert container.process.wait(30) == 1
    assert "set SIVE_API_KEYS=KEY[,KEY...]" in container.said
    assert len(container.said.splitlines()) == 1


def test_a_configuration_beside_it_is_found(gateway: Build, start: Start) -> None:
    """What is mounted as /sive/sive.toml is the gateway's configuration."""
    config = Path(gateway.here("/sive/sive.toml"))
    config.write_text('[model.plato]\nroute = [{ backend = "local", model = "auto" }]\n')
    try:
        container = start(SIVE_API_KEYS="k", PORT=free_port())
        assert ask(container.url, "plato").status_code == 200
    finally:
        config.unlink()


def test_the_gateway_is_small_and_complete(gateway: Build) -> None:
    """No tool to build or install with, everything compiled, and far below 250 MB compressed."""
    packages = next(gateway.root.glob("opt/sive/lib/python3*/site-packages"))
    assert not [tool for tool in TOOLS if list(packages.glob(f"{tool}*"))]
    assert not list(packages.glob("*.dist-info/direct_url.json"))
    sources = list((gateway.root / "opt/sive/src").rglob("*.py"))
    compiled = {path.name.split(".")[0] for path in (gateway.root / "opt/sive/src").rglob("*.pyc")}
    assert sources
    assert {path.stem for path in sources} <= compiled
    pack = f"tar --create --directory {gateway.root} . | gzip -1 | wc --bytes"
    packed = subprocess.run(["/bin/sh", "-c", pack], capture_output=True, text=True, check=True)
    assert int(packed.stdout) / 1e6 + BASE_MB <= LIMIT_MB


def test_a_private_checkout_makes_an_image_that_all_can_read(gateway: Build) -> None:
    """Docker copies permissions as they are; who runs the image is not who built it."""
    source = gateway.root / "opt/sive/src/sive_serve/cli/app.py"
    source.chmod(0o600)
    subprocess.run(
        ["make", "--no-print-directory", "image-finish", f"ARGS={gateway.here('/opt/sive')}"],
        cwd=ROOT,
        env={"PATH": python_path()},
        check=True,
        capture_output=True,
    )
    assert source.stat().st_mode & 0o777 == 0o644


def test_nothing_of_the_image_points_elsewhere(gateway: Build) -> None:
    """It holds no path of the folder that it was copied from, nor of this checkout."""
    for script in (gateway.root / "opt/sive/bin").iterdir():
        text = script.read_bytes() if not script.is_symlink() else b""
        assert b"stage-" not in text
        assert str(ROOT).encode() not in text


def test_cpu_weights_can_be_baked_in(gateway: Build, tmp_path: Path, start: Start) -> None:
    """The step that the build argument CPU_MODEL asks for makes that model the gateway's last rung."""
    model = write_gpt2(tmp_path / "gpt2-tiny")
    cache = gateway.here("/opt/sive/cache")
    ran = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "image-weights",
            f"ARGS={gateway.here('/opt/sive')} {cache} {model}",
        ],
        cwd=ROOT,
        env={"PATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        assert ran.returncode == 0, ran.stdout + ran.stderr
        container = start(SIVE_API_KEYS="k", PORT=free_port(), SIVE_OFFLINE="1")
        assert container.url
        assert "gpt2-tiny" in container.said
    finally:
        shutil.rmtree(cache)


def test_without_the_argument_nothing_is_baked_in(gateway: Build) -> None:
    """The image's folder for CPU models is there and empty."""
    assert gateway.stages["installed"].last("ARG").rest == 'CPU_MODEL=""'
    weights = subprocess.run(
        ["make", "--no-print-directory", "image-weights", f"ARGS=/nowhere {gateway.here('/tmp')}"],
        cwd=ROOT,
        env={"PATH": python_path()},
        check=True,
    )
    assert weights.returncode == 0
    assert list(Path(gateway.here("/tmp/sive/weights")).iterdir()) == []
