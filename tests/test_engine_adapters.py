"""The adapters of an engine: loaded by version, proved, changed while it runs, back when it returns."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sive.config import EngineSettings
from sive.errors import AdapterError, EngineError
from sive_adapters.registry import read_adapters
from sive_adapters.store import Store
from sive_serve import engine_adapters
from sive_serve.engine import Engine
from sive_serve.engine_adapters import EngineAdapters

from tests.conftest import TINY
from tests.test_engine import FAKE, until

VOICES = ("spinoza", "bergson", "kant")


class House:
    """A list of adapters on disk, a store, and engines over the stand-in that serve them."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.path = folder / "adapters.toml"
        self.log = folder / "engine.log"
        for name in (*VOICES, "base"):
            shutil.copytree(TINY / name, folder / name)
        entry = '[[adapter]]\nname = "{0}"\nsource = "file:{0}"\nbase_model = "file:base"\n'
        self.path.write_text("# ours\n" + "\n".join(entry.format(name) for name in names))

    def engine(self, **misbehaviour: object) -> Engine:
        """Another engine, as after a restart of sive."""
        own = {"dtype": misbehaviour.pop("dtype")} if "dtype" in misbehaviour else {}
        keys: dict[str, Any] = {f"fake-{key}": value for key, value in misbehaviour.items()} | own
        keys["fake-log"] = str(self.log)
        settings = EngineSettings(model=str(self.folder / "base"), command=FAKE, **keys)
        adapters = EngineAdapters(self.path, Store(self.folder / "store"), model=str(self.folder / "base"))
        return Engine(settings, adapters, environ=os.environ)

    def engine_log(self) -> list[str]:
        """What the engine was told to load and unload."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if not line.startswith("serve ")]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A list with one adapter."""
    return House(tmp_path, "spinoza")


def run(engine: Engine, scenario: Callable[[EngineAdapters], Awaitable[None]]) -> None:
    """Wait until the engine is ready, play the scenario, and stop it whatever happened."""

    async def play() -> None:
        await engine.start()
        try:
            await engine.wait_ready(30)
            assert engine.adapters is not None
            await scenario(engine.adapters)
        finally:
            await engine.stop()

    asyncio.run(play())


def serving(adapters: EngineAdapters) -> dict[str, str]:
    """The versions that answer, by name."""
    return {name: state.serving.short for name, state in adapters.states.items() if state.serving is not None}


async def drained(house: House, line: str) -> None:
    """Wait until the engine was told this."""
    await until(lambda: line in house.engine_log(), what=line)


def another(adapters: EngineAdapters, name: str, source: str) -> Any:
    """The listed adapter, from elsewhere."""
    listed = adapters.wanted(name)
    return replace(listed, release=replace(listed.release, source=source, sha256={}))


def test_an_adapter_is_loaded_under_its_version(house: House) -> None:
    """From a folder in the store that does not change when its source does."""

    async def scenario(adapters: EngineAdapters) -> None:
        state = adapters.states["spinoza"]
        assert state.phase == "serving"
        assert state.serving is not None
        assert state.serving.folder.is_relative_to(house.folder / "store")
        assert house.engine_log() == [f"load spinoza@{state.serving.short}"]
        assert not state.is_pinned

    run(house.engine(), scenario)


def test_a_change_is_proved_beside_the_old_one(house: House) -> None:
    """Load, prove, flip, drain, unload; the list says what its files are, and what was before."""

    async def scenario(adapters: EngineAdapters) -> None:
        old = serving(adapters)["spinoza"]
        changes: list[dict[str, str]] = []
        adapters.changed = lambda: changes.append(serving(adapters))
        busy = {f"spinoza@{old}"}
        adapters.users = lambda name: int(name in busy)
        state = await adapters.put(another(adapters, "spinoza", "file:kant"))
        new = serving(adapters)["spinoza"]
        assert new != old
        assert changes == [{"spinoza": new}]
        assert house.engine_log()[1:] == [f"load spinoza@{new}"]
        busy.clear()
        await drained(house, f"unload spinoza@{old}")
        (listed,) = read_adapters(house.path)
        assert listed == state.adapter
        assert (listed.release.source, listed.release.digest[:12]) == ("file:kant", new)
        assert [release.digest[:12] for release in listed.previous] == [old]
        assert house.path.read_text().startswith("# ours\n")

    run(house.engine(), scenario)


def test_a_roll_back_goes_back_and_forth(house: House) -> None:
    """Without its source: the version is in the store."""

    async def scenario(adapters: EngineAdapters) -> None:
        old = serving(adapters)["spinoza"]
        with pytest.raises(AdapterError, match="no version before"):
            await adapters.roll_back("spinoza")
        await adapters.put(another(adapters, "spinoza", "file:kant"))
        new = serving(adapters)["spinoza"]
        shutil.rmtree(house.folder / "spinoza")
        await adapters.roll_back("spinoza")
        assert serving(adapters) == {"spinoza": old}
        await adapters.roll_back("spinoza")
        assert serving(adapters) == {"spinoza": new}
        assert len(read_adapters(house.path)[0].previous) == 1

    run(house.engine(), scenario)


def test_adapters_come_and_go(house: House) -> None:
    """What is removed is unloaded and not listed any more."""

    async def scenario(adapters: EngineAdapters) -> None:
        await adapters.put(adapters.parse({"name": "kant", "source": "file:kant", "base_model": "file:base"}))
        assert sorted(serving(adapters)) == ["kant", "spinoza"]
        version = serving(adapters)["kant"]
        await adapters.remove("kant")
        assert list(serving(adapters)) == ["spinoza"]
        await drained(house, f"unload kant@{version}")
        assert [adapter.name for adapter in read_adapters(house.path)] == ["spinoza"]
        with pytest.raises(AdapterError, match="listed are: spinoza"):
            await adapters.remove("kant")
        with pytest.raises(AdapterError, match="is for Qwen/Qwen3-8B, the engine serves"):
            adapters.parse({"name": "kant", "source": "file:kant", "base_model": "Qwen/Qwen3-8B"})

    run(house.engine(), scenario)


@pytest.mark.parametrize("spoil", ["nan", "rank", "gone"])
def test_what_is_not_fit_changes_nothing(house: House, spoil: str) -> None:
    """The old version goes on, the list stays, and the engine never saw the new one."""
    weights = house.folder / "kant" / "adapter_model.safetensors"
    if spoil == "nan":
        raw = bytearray(weights.read_bytes())
        raw[-2:] = b"\xff\xff"
        weights.write_bytes(raw)
    elif spoil == "rank":
        config = house.folder / "kant" / "adapter_config.json"
        config.write_text(config.read_text().replace('"r": ', '"r": 6'))
    else:
        weights.unlink()

    async def scenario(adapters: EngineAdapters) -> None:
        before, text = serving(adapters), house.path.read_text()
        with pytest.raises(AdapterError, match="spinoza"):
            await adapters.put(another(adapters, "spinoza", "file:kant"))
        assert serving(adapters) == before
        assert adapters.states["spinoza"].phase == "serving"
        assert house.path.read_text() == text
        assert len(house.engine_log()) == 1

    run(house.engine(), scenario)


def test_an_engine_that_does_not_apply_an_adapter_does_not_speak_as_it(house: House) -> None:
    """It reads like its base: refused, unloaded, and nobody answers under its name."""

    async def scenario(adapters: EngineAdapters) -> None:
        state = adapters.states["spinoza"]
        assert (state.phase, state.serving) == ("refused", None)
        assert "reads like its base model" in state.detail
        assert "refused" not in state.why_not
        assert state.detail in state.why_not
        assert house.engine_log()[1].startswith("unload spinoza@")
        with pytest.raises(AdapterError, match="reads like its base"):
            await adapters.put(another(adapters, "spinoza", "file:kant"))

    run(house.engine(deaf=True), scenario)


def test_an_adapter_has_to_read_as_when_it_was_accepted(house: House) -> None:
    """The fingerprint outlives the engine; another kind of engine has one of its own."""

    async def accepted(adapters: EngineAdapters) -> None:
        assert adapters.states["spinoza"].phase == "serving"

    async def refused(adapters: EngineAdapters) -> None:
        state = adapters.states["spinoza"]
        assert state.phase == "refused"
        assert "does not read as when it was accepted" in state.detail

    run(house.engine(), accepted)
    run(house.engine(), accepted)
    run(house.engine(drift=0.5), refused)
    run(house.engine(drift=0.001), accepted)
    run(house.engine(drift=0.5, dtype="bfloat16"), accepted)


def test_after_a_restart_the_engine_has_all_its_adapters_again(tmp_path: Path) -> None:
    """Loaded and proved anew, from the store alone; meanwhile nobody answers under their names."""
    house = House(tmp_path, *VOICES)

    async def play() -> None:
        engine = house.engine()
        adapters = engine.adapters
        assert adapters is not None
        await engine.start()
        try:
            await engine.wait_ready(30)
            before = serving(adapters)
            assert sorted(before) == sorted(VOICES)
            for name in VOICES:
                await adapters.put(adapters.wanted(name))  # pins them
                shutil.rmtree(house.folder / name)
            seen: list[dict[str, str]] = []
            adapters.changed = lambda: seen.append(serving(adapters))
            assert engine._boot is not None
            os.kill(engine._boot._told["pids"][0][0], 9)
            await until(lambda: engine.state.phase == "failed", what="failed")
            assert seen[0] == {}
            await engine.wait_ready(30)
            assert serving(adapters) == before
        finally:
            await engine.stop()

    asyncio.run(play())


def test_what_cannot_be_fetched_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine serves the others meanwhile."""
    monkeypatch.setattr(engine_adapters, "RETRY_S", (0.2,))
    shutil.move(house.folder / "spinoza", house.folder / "away")

    async def scenario(adapters: EngineAdapters) -> None:
        state = adapters.states["spinoza"]
        assert (state.phase, state.is_retried) == ("refused", True)
        shutil.move(house.folder / "away", house.folder / "spinoza")
        await until(lambda: adapters.states["spinoza"].phase == "serving", what="spinoza serves")

    run(house.engine(), scenario)


def test_what_is_not_pinned_is_served_as_it_was_when_its_source_is_away(house: House) -> None:
    """A hub that is down does not take a voice away that is on this disk."""

    async def scenario(adapters: EngineAdapters) -> None:
        assert adapters.states["spinoza"].phase == "serving"

    run(house.engine(), scenario)
    shutil.rmtree(house.folder / "spinoza")
    run(house.engine(), scenario)


def test_an_adapter_the_engine_lost_is_loaded_again(house: House) -> None:
    """As soon as anybody is told that it is not there."""

    async def scenario(adapters: EngineAdapters) -> None:
        version = serving(adapters)["spinoza"]
        engine = adapters._engine
        assert engine is not None
        await engine.client.unload(f"spinoza@{version}")
        adapters.reload("spinoza")
        adapters.reload("nobody")
        await until(lambda: house.engine_log().count(f"load spinoza@{version}") == 2, what="loaded again")
        assert serving(adapters) == {"spinoza": version}

    run(house.engine(), scenario)


def test_old_versions_go_when_the_engine_starts_anew(house: House) -> None:
    """Those that a roll-back may want stay, and so does what others have in the same store."""
    weights = house.folder / "spinoza" / "adapter_model.safetensors"
    raw = weights.read_bytes()
    other = house.folder / "store" / "hegel" / "0123456789ab"
    other.mkdir(parents=True)

    async def changed(adapters: EngineAdapters) -> None:
        for number in range(1, 8):
            weights.write_bytes(raw[:-1] + bytes([number]))
            await adapters.put(another(adapters, "spinoza", "file:spinoza"))
        assert len(list((house.folder / "store" / "spinoza").glob("*/"))) == 8

    async def again(adapters: EngineAdapters) -> None:
        kept = [path for path in (house.folder / "store" / "spinoza").iterdir() if path.is_dir()]
        assert len(kept) == 6
        assert len(read_adapters(house.path)[0].previous) == 5
        assert other.is_dir()

    run(house.engine(), changed)
    run(house.engine(), again)


def test_an_engine_that_dies_during_a_change_fails_the_change(house: House) -> None:
    """The list is as before."""

    async def scenario(adapters: EngineAdapters) -> None:
        text = house.path.read_text()
        engine = adapters._engine
        assert engine is not None
        await engine.client.aclose()
        with pytest.raises((EngineError, RuntimeError)):
            await adapters.put(another(adapters, "spinoza", "file:kant"))
        assert house.path.read_text() == text

    run(house.engine(), scenario)
