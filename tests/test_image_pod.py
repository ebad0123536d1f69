"""The pod's image, made in a clean folder and run, where this machine stands in for vLLM's image."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psutil
import pytest
from sive.config import load
from sive_serve.engine_config import vllm_config

from tests.conftest import ROOT, TINY, until
from tests.lab.containers import Container, ask, built, free_port, running
from tests.lab.dockerfile import Build
from tests.lab.engines import free_ports

IMAGE = ROOT / "serve" / "image"
FAKE = ROOT / "tests" / "lab" / "fake_engine.py"


@pytest.fixture(scope="module")
def pod() -> Iterator[Build]:
    """The pod's image as a folder; this machine stands in for vLLM's image."""
    with built("pod") as build:
        yield build


Start = Callable[..., Container]


@pytest.fixture
def start(pod: Build, tmp_path: Path) -> Iterator[Start]:
    """Run the image's entrypoint with arguments and variables; ended with the test."""
    with ExitStack() as stack:
        yield lambda *said, **env: stack.enter_context(
            running(pod, tmp_path / f"{len(list(tmp_path.iterdir()))}.txt", *said, **env)
        )


def test_the_image_s_configuration_is_one_vllm_takes() -> None:
    """Every key is sive's or goes to vLLM, which listens on loopback on a port of its own."""
    settings = load(IMAGE / "engine.toml", environ={}).settings
    assert settings.engine is not None
    config = vllm_config(settings.engine, None, model=settings.engine.model, name="base", on_cpu=False)
    assert config["host"] == "127.0.0.1"
    assert config["port"] not in (settings.gateway.port, 8000)
    assert config["max-model-len"] == 8192
    assert settings.engine.model == "Qwen/Qwen2.5-14B-Instruct"


def on_volume(pod: Build, text: str) -> None:
    """Write the volume's sive.toml."""
    (Path(pod.here("/workspace")) / "sive.toml").write_text(text)


def stand_in(folder: Path) -> str:
    """Return a PATH on which `vllm` is the stand-in engine."""
    program = folder / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


def test_a_pod_serves_its_engine(pod: Build, start: Start, tmp_path: Path, base: Path) -> None:
    """The image's configuration with another base: an engine boots below it, and SIGTERM ends all of it."""
    port, engine_port = free_ports(2)
    ours = (IMAGE / "engine.toml").read_text()
    for before, after in (
        ("Qwen/Qwen2.5-14B-Instruct", str(base)),
        ("8001", f"{engine_port}\nfake-family = true"),
    ):
        assert ours.count(before) == 1
        ours = ours.replace(before, after)
    on_volume(pod, ours)
    container = start(SIVE_API_KEYS="k", PORT=str(port), PATH=stand_in(tmp_path))
    url = container.url
    until(lambda: phase(url) == "ready", 30, "the engine ready")
    assert container.health() == 0
    family = psutil.Process(container.process.pid).children(recursive=True)
    served = httpx2.get(f"{url}/v1/models", headers={"Authorization": "Bearer k"}, timeout=10).json()["data"]
    assert {model["id"] for model in served} == {"qwen", "local"}
    assert any("fake_engine" in " ".join(member.cmdline()) for member in family)
    container.process.terminate()
    assert container.process.wait(40) == 0, container.said
    assert not psutil.wait_procs(family, 10)[1]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model folder: a configuration and a file of weights."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(8))
    return folder


def phase(url: str) -> str:
    """What a pod's engine is doing."""
    answer = httpx2.get(f"{url}/status", headers={"Authorization": "Bearer k"}, timeout=10)
    return str(answer.json()["engine"]["phase"])


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_a_pod_serves_real_adapters(pod: Build, start: Start) -> None:
    """The entrypoint as in the image, with vLLM on PATH in an environment of its own: a LoRA answers."""
    on_volume(
        pod,
        f'[gateway]\nfirst_token_s = 60\n[engine]\nmodel = "{TINY}/base"\nadapters = "{TINY}/adapters.toml"\n'
        'max_model_len = 512\ndtype = "float32"\n',
    )
    vllm = ROOT / ".venv-engine" / "bin"
    container = start(SIVE_API_KEYS="k", PORT=free_port(), PATH=f"{vllm}:/usr/bin:/bin")
    url = container.url
    assert ask(url, "spinoza").headers["x-sive-backend"] == "local"  # at once, while the engine boots
    until(lambda: phase(url) == "ready", 240, "the engine ready")
    answer = ask(url, "spinoza")
    assert answer.headers["x-sive-backend"] == "engine"
    assert answer.headers["x-sive-degraded"] == "false"
    family = psutil.Process(container.process.pid).children(recursive=True)
    environment = next(one.environ() for one in family if "vllm.entrypoints" in " ".join(one.cmdline()))
    assert environment["HF_HOME"] == pod.here("/workspace/huggingface")
    assert environment["XDG_CACHE_HOME"] == pod.here("/workspace/cache")
    assert not [name for name in environment if name.startswith("SIVE_")]
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(60) == 0, container.said
    assert not psutil.wait_procs(family, 10)[1]
