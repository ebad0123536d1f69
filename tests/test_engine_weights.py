"""The base model's weights: fetched before vLLM starts, from wherever its name says."""

from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import pytest
from sive.config import EngineSettings
from sive_serve.engine_config import Program
from sive_serve.engine_models import read_base

from tests.conftest import Served, launch, until
from tests.lab.buckets import environment
from tests.lab.gcs import ObjectStore
from tests.lab.hub import Hub
from tests.test_engine import FAKE

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "model-00001-of-00002.safetensors": bytes(3_000_000),
    "model-00002-of-00002.safetensors": b"weights two",
}
CONFIG = """
[engine]
model = "{model}"
command = "{fake}"
fake-log = "{log}"
"""


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A folder of buckets, one of which holds a model."""
    folder = tmp_path / "objects" / "models" / "qwen-tiny"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return tmp_path / "objects"


def started(folder: Path, config: str, store: ObjectStore) -> AbstractContextManager[Served]:
    """A sive whose way to every object store leads to this one."""
    return launch(folder, config, SIVE_OFFLINE="", **environment(store))


def engine_of(served: Served) -> dict[str, object]:
    """What /status says of the engine."""
    said: dict[str, object] = served.get("/status").json()["engine"]
    return said


def model_served(log: Path) -> Path:
    """The folder that the engine was told to serve."""
    until(log.exists, 30, "the engine's log")
    what, _, model = log.read_text().splitlines()[0].partition(" ")
    assert what == "serve"
    return Path(model)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_model_in_a_bucket_is_fetched_before_the_engine_starts(
    tmp_path: Path, objects: Path, scheme: str
) -> None:
    """As a folder on this disk, under the name at the end of its address."""
    log = tmp_path / "engine.log"
    config = CONFIG.format(model=f"{scheme}://models/qwen-tiny", fake=FAKE, log=log)
    with (
        ObjectStore(objects) as store,
        launch(tmp_path, config, SIVE_OFFLINE="", **environment(store)) as served,
    ):
        model = model_served(log)
        until(lambda: engine_of(served)["phase"] == "ready", 30, "ready")
        assert "qwen-tiny" in [one["id"] for one in served.get("/v1/models").json()["data"]]
    found = {path.name: path.read_bytes() for path in model.iterdir() if path.name != "sive.json"}
    assert found == FILES


def test_while_a_model_is_fetched_its_bytes_are_told(tmp_path: Path, objects: Path) -> None:
    """In /status, with how long it will take; callers hear that the engine is fetching."""
    log = tmp_path / "engine.log"
    config = CONFIG.format(model="gs://models/qwen-tiny", fake=FAKE, log=log)
    with ObjectStore(objects) as store:
        store.faults.bytes_per_s = 1_000_000
        with started(tmp_path, config, store) as served:
            until(lambda: engine_of(served)["fetched_bytes"], 30, "bytes")
            said = engine_of(served)
            assert said["phase"] == "fetching"
            assert 0 < int(str(said["fetched_bytes"])) <= int(str(said["to_fetch_bytes"]))
            assert int(str(said["ready_in_s"])) > 0
            asked = {"model": "qwen-tiny", "messages": [{"role": "user", "content": "?"}]}
            wants = {"x-sive-require": "adapter"}
            url = f"{served.url}/v1/chat/completions"
            told = httpx2.post(url, json=asked, headers=wants, timeout=20)
            assert told.status_code == 503
            assert "fetching" in told.json()["error"]["message"]
            assert int(told.headers["retry-after"]) > 0
            until(lambda: engine_of(served)["phase"] == "ready", 60, "ready")
            assert engine_of(served)["to_fetch_bytes"] == 0


def test_a_hub_model_is_fetched_at_its_commit(tmp_path: Path, objects: Path) -> None:
    """And keeps its id as the name callers know."""
    log = tmp_path / "engine.log"
    config = CONFIG.format(model="org/qwen-tiny", fake=FAKE, log=log)
    with (
        Hub({"org/qwen-tiny": objects / "models" / "qwen-tiny"}) as hub,
        launch(tmp_path, config, HF_ENDPOINT=hub.url, SIVE_OFFLINE="", HF_HUB_OFFLINE="") as served,
    ):
        assert (model_served(log) / "config.json").read_bytes() == b"{}"
        assert "org/qwen-tiny" in [one["id"] for one in served.get("/v1/models").json()["data"]]


def test_a_bucket_without_the_model_says_so(tmp_path: Path, objects: Path) -> None:
    """The engine's state names the address and what is missing, and it is tried again."""
    config = CONFIG.format(model="gs://models/nothing", fake=FAKE, log=tmp_path / "log")
    with (
        ObjectStore(objects) as store,
        launch(tmp_path, config, SIVE_OFFLINE="", **environment(store)) as served,
    ):
        until(lambda: engine_of(served)["detail"], 30, "a reason")
        assert "the model cannot be had: " in str(engine_of(served)["detail"])
        assert "gs://models/nothing" in str(engine_of(served)["detail"])
        until(lambda: engine_of(served)["restarts"], 30, "another try")


def test_a_hub_that_is_away_is_vllms_to_explain(tmp_path: Path) -> None:
    """It may have a mirror or a cache of its own."""
    log = tmp_path / "engine.log"
    config = CONFIG.format(model="org/qwen-tiny", fake=FAKE, log=log)
    with launch(tmp_path, config):
        assert str(model_served(log)) == "org/qwen-tiny"


def test_the_engines_own_python_is_asked_what_it_can_stream(tmp_path: Path) -> None:
    """The interpreter in the first line of its script, else the one beside it."""
    script = tmp_path / "vllm"
    script.write_text("#!/usr/bin/python3\nimport vllm\n")
    assert Program((str(script), "serve"), on_cpu=False).python == Path("/usr/bin/python3")
    script.write_text("#!/bin/sh -e\n")
    assert Program((str(script), "serve"), on_cpu=False).python == tmp_path.resolve() / "python3"
    assert Program(("/x/python", "-m", "y"), on_cpu=True).python == Path("/x/python")


def test_a_model_in_a_bucket_is_named_by_its_last_part() -> None:
    """Nobody wants to ask for an address; its weights are the address."""
    base = read_base(EngineSettings(model="s3://bucket/models/qwen"))
    assert (base.name, base.weights) == ("qwen", "s3://bucket/models/qwen")
