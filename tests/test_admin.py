"""``/admin/adapters`` and the commands that ask it: keys, errors, what is told on the way."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from sive.config import load
from sive.errors import ConfigError
from sive_adapters.registry import read_adapters

from tests.conftest import TINY, Served, clean_environment, launch, until
from tests.test_engine import FAKE

ADMIN = {"authorization": "Bearer admin"}
CONFIG = """
[engine]
model = "{folder}/base"
adapters = "{folder}/adapters.toml"
command = "{fake}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list with one adapter, and the files of others."""
    made = tmp_path_factory.mktemp("admin")
    for name in ("base", "spinoza", "bergson", "kant"):
        shutil.copytree(TINY / name, made / name)
    (made / "adapters.toml").write_text(
        '[[adapter]]\nname = "spinoza"\nsource = "file:spinoza"\nbase_model = "file:base"\n'
        'system_prompt = "You are\\u2028Spinoza."\n\n[adapter.sampling]\ntemperature = 0.5\n'
    )
    return made


@pytest.fixture(scope="module")
def pod(folder: Path) -> Iterator[Served]:
    """A sive with a stand-in engine and an admin key."""
    config = CONFIG.format(folder=folder, fake=FAKE)
    with launch(folder, config, SIVE_ADMIN_KEYS="admin", SIVE_API_KEYS="caller") as served:
        until(lambda: _status(served)["phase"] == "ready", 30, "the engine ready")
        yield served


def _status(served: Served) -> Any:
    return served.get("/status", headers={"authorization": "Bearer caller"}).json()["engine"]


def _ask(served: Served, body: Any, **headers: str) -> httpx2.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{served.url}/admin/adapters"
    return httpx2.post(url, content=data, headers={**ADMIN, **headers}, timeout=60)


def _engine_url(served: Served) -> str:
    """Where the engine listens: its own command line says."""
    for process in psutil.Process(served.process.pid).children(recursive=True):
        words = process.cmdline()
        if "--config" in words and "fake_engine" in " ".join(words):
            port = json.loads(Path(words[words.index("--config") + 1]).read_text())["port"]
            return f"http://127.0.0.1:{port}"
    raise AssertionError("there is no engine")


def _command(served: Served, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sive_serve.cli", "adapters", *arguments, "--url", served.url]
    env = clean_environment(HOME="/nonexistent", SIVE_ADMIN_KEYS="admin")
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_only_administrators_are_let_in(pod: Served) -> None:
    """A caller's key is not enough, and an administrator's opens nothing else."""
    for headers in ({}, {"authorization": "Bearer caller"}):
        assert httpx2.get(f"{pod.url}/admin/adapters", headers=headers).status_code == 401
    assert pod.get("/admin/adapters", headers=ADMIN).status_code == 200
    assert pod.get("/status", headers=ADMIN).status_code == 401


def test_without_an_admin_key_nobody_changes_anything(folder: Path) -> None:
    """Not even where there are no keys at all: a page in a browser could ask."""
    with launch(folder, "") as served:
        refused = httpx2.post(f"{served.url}/admin/adapters", json={}, headers=ADMIN)
        assert refused.status_code == 403
        assert "SIVE_ADMIN_KEYS" in refused.json()["error"]["message"]


def test_an_adapter_is_shown_with_its_version(pod: Served) -> None:
    """In /admin/adapters, /status, /v1/models and /metrics."""
    shown = pod.get("/admin/adapters", headers=ADMIN).json()["adapters"]["spinoza"]
    assert (shown["phase"], shown["pinned"], shown["source"]) == ("serving", False, "file:spinoza")
    said = _status(pod)["adapters"]["spinoza"]
    assert said == {key: value for key, value in shown.items() if key in said}
    assert not said.keys() & {"source", "detail", "base_model"}
    caller = {"authorization": "Bearer caller"}
    models = {model["id"]: model for model in pod.get("/v1/models", headers=caller).json()["data"]}
    assert models["spinoza"]["weights"].endswith(f"+spinoza@{shown['version']}")
    assert models["spinoza"]["parent"] == "base"
    line = f'sive_adapter_serving{{adapter="spinoza",version="{shown["version"]}"}} 1.0'
    assert line in pod.get("/metrics", headers=caller).text


def test_a_change_tells_its_phases(pod: Served, folder: Path) -> None:
    """As events, when asked so; the last one says what is served."""
    asked = {"action": "update", "name": "spinoza", "source": "file:bergson"}
    reply = _ask(pod, asked, accept="text/event-stream")
    told = [json.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: ")]
    phases = [one["phase"] for one in told if "phase" in one]
    assert list(dict.fromkeys(phases)) == ["fetching", "checking", "loading", "probing"]
    assert any(one.get("done_bytes") for one in told)
    assert told[-1]["adapters"]["spinoza"]["pinned"]
    (listed,) = read_adapters(folder / "adapters.toml")
    assert (listed.release.source, listed.system_prompt) == ("file:bergson", "You are\u2028Spinoza.")
    assert listed.sampling == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "a change looks like"),
        (b"x" * 200_000, "more than 100000 bytes"),
        ({"action": "explode", "name": "spinoza"}, "write add, update, rollback or remove"),
        ({"action": "add", "name": "spinoza", "source": "file:kant"}, "listed already"),
        ({"action": "update", "name": "nobody"}, "no adapter 'nobody'"),
        ({"action": "add", "name": "a@b", "source": "file:kant"}, "make a name"),
        ({"action": "add", "name": "kant", "source": "ftp://x/y"}, "is no source"),
        ({"action": "add", "name": "kant", "source": "file:kant", "sauce": 1}, "sauce"),
        ({"action": "add", "name": "kant", "source": "file:kant", "base_model": "a/b"}, "the engine serves"),
        ({"action": "remove", "name": "base"}, "no adapter 'base'"),
        ({"action": "add", "name": "base", "source": "file:kant"}, "is the name of the base model"),
    ],
)
def test_what_cannot_be_done_says_why(pod: Served, body: Any, said: str) -> None:
    """400 in OpenAI's shape, and nothing is changed."""
    before = pod.get("/admin/adapters", headers=ADMIN).json()
    reply = _ask(pod, body)
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
    assert pod.get("/admin/adapters", headers=ADMIN).json() == before


def test_what_came_wrong_twice_is_fetched_for_a_person_alone(pod: Served) -> None:
    """A gateway that keeps pods at its list says that nobody asked; the refusal names the file to remove."""
    wrong = dict.fromkeys(("adapter_config.json", "adapter_model.safetensors"), "0" * 64)
    asked = {"action": "update", "name": "spinoza", "source": "file:kant", "sha256": wrong}
    heads: list[dict[str, str]] = [{}, {}, {"x-sive-automatic": "1"}, {}]
    told = [_ask(pod, asked, **headers).json()["error"]["message"] for headers in heads]
    assert all("is pinned" in one for one in told)
    assert ["refused.json" in one for one in told] == [False, False, True, False]


def test_an_adapter_the_engine_has_lost_is_loaded_again(pod: Served) -> None:
    """A caller who is told that it is not there is the last one."""
    engine = httpx2.Client(base_url=_engine_url(pod))
    name = next(model["id"] for model in engine.get("/v1/models").json()["data"] if "@" in model["id"])
    engine.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
    asked = {"model": "spinoza", "prompt": "?"}
    headers = {"authorization": "Bearer caller", "x-sive-require": "adapter"}
    reply = httpx2.post(f"{pod.url}/v1/completions", json=asked, headers=headers, timeout=30)
    assert reply.status_code == 503

    def is_back() -> bool:
        return name in [model["id"] for model in engine.get("/v1/models").json()["data"]]

    until(is_back, 20, "the adapter is loaded again")
    engine.close()


def test_a_route_to_an_adapter_that_was_removed_rests(folder: Path) -> None:
    """Its other rungs answer; at the start such a route would be a mistake."""
    route = '[{ backend = "engine", model = "spinoza" }, { backend = "local", model = "auto" }]'
    config = CONFIG.format(folder=folder, fake=FAKE) + f"[model.sage]\nroute = {route}\n"
    with launch(folder, config, SIVE_ADMIN_KEYS="admin") as served:
        until(lambda: served.get("/status").json()["engine"]["phase"] == "ready", 30, "the engine ready")
        assert _ask(served, {"action": "remove", "name": "spinoza"}).status_code == 200
        first, second = served.get("/status").json()["models"]["sage"]["rungs"]
        assert first["resting"] == "the engine does not speak as 'spinoza' (not listed)"
        assert second["ready"]
        added = _ask(served, {"action": "add", "name": "spinoza", "source": "file:spinoza"})
        assert added.status_code == 200, added.text
        first, _ = served.get("/status").json()["models"]["sage"]["rungs"]
        assert first["ready"], first


def test_tokens_of_another_version_are_not_gone_on_from(pod: Served) -> None:
    """Who carries an answer on says whose it is; a pod that has another version by now says no."""
    caller = {"authorization": "Bearer caller"}
    listed = pod.get("/v1/models", headers=caller).json()["data"]
    weights = next(model["weights"] for model in listed if model["id"] == "spinoza")
    asked = {"model": "spinoza", "messages": [{"role": "user", "content": "?"}], "stream": True}
    for said, status in ((weights, 200), ("base@0+spinoza@1", 404)):
        headers = caller | {"x-sive-weights": said, "x-sive-require": "adapter"}
        reply = httpx2.post(f"{pod.url}/v1/chat/completions", json=asked, headers=headers, timeout=20)
        assert reply.status_code == status, reply.text
    assert reply.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("keys", ["api_keys", "admin_keys"])
def test_an_empty_key_opens_nothing(keys: str, tmp_path: Path) -> None:
    """It would let everybody in: refused at the start."""
    (tmp_path / "sive.toml").write_text(f'[gateway]\n{keys} = [""]\n')
    with pytest.raises(ConfigError, match="let everybody in"):
        load(tmp_path / "sive.toml", environ={})


def test_the_commands_change_a_running_sive(pod: Served) -> None:
    """Add, update, rollback, remove; a line each, and a refusal with its reason."""
    added = _command(pod, "add", "kant", "file:kant")
    assert added.returncode == 0, added.stderr
    assert "kant serves version" in added.stdout
    first = added.stdout.split()[-1]
    updated = _command(pod, "update", "kant", "file:bergson")
    assert updated.stdout.split()[-1] not in ("", first)
    assert _command(pod, "rollback", "kant").stdout.split()[-1] == first
    refused = _command(pod, "update", "kant", "file:nowhere")
    assert refused.returncode == 1
    assert "nowhere" in refused.stderr
    assert "Traceback" not in refused.stderr
    removed = _command(pod, "remove", "kant")
    assert (removed.returncode, removed.stdout.split()[1:]) == (0, ["kant", "is", "done"])
    assert "kant" not in pod.get("/admin/adapters", headers=ADMIN).json()["adapters"]


def test_a_sive_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One line with its address, and exit status 1."""
    command = [sys.executable, "-m", "sive_serve.cli", "adapters", "remove", "kant"]
    env = clean_environment(HOME=str(tmp_path), SIVE_ADMIN_KEYS="admin")
    asked = [*command, "--url", "http://127.0.0.1:9"]
    done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("http://127.0.0.1:9: no sive answers there")
    env.pop("SIVE_ADMIN_KEYS")
    done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert "SIVE_ADMIN_KEYS" in done.stderr
    assert os.linesep.join(done.stderr.splitlines()).count("\n") <= 1
