"""The adapters of an engine: loaded by version, proved, changed while it runs, back when it returns."""

import asyncio
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sive.config import CompatSettings, EngineSettings, LocalSettings, Settings
from sive.errors import AdapterError, ConfigError, EngineError
from sive_adapters import registry
from sive_adapters.registry import Adapter, Release, read_adapters
from sive_adapters.store import Store
from sive_serve import engine_adapters
from sive_serve.adapter_changes import Wish
from sive_serve.engine import Engine
from sive_serve.engine_adapters import EngineAdapters
from sive_serve.gateway import Gateway

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


def same(listed: Adapter | None) -> Adapter:
    """The listed adapter, as its source is now."""
    assert listed is not None
    return listed


def source(text: str) -> Wish:
    """The listed adapter, from elsewhere."""

    def wish(listed: Adapter | None) -> Adapter:
        assert listed is not None
        return replace(listed, release=Release(text))

    return wish


def test_a_door_may_name_an_adapter_that_comes_later(house: House) -> None:
    """Where adapters come and go; before an engine that has none it is a mistake."""
    compat = Settings(compat=CompatSettings(model="kant"), local=LocalSettings(enabled=False))
    engine = house.engine()
    assert "kant" not in Gateway(compat, engine=engine).table
    engine.adapters = None
    with pytest.raises(ConfigError, match="model = 'kant' is not served; served are base"):
        Gateway(compat, engine=engine)


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
        adapters.wanted.changed = lambda: changes.append(serving(adapters))
        busy, asked = {f"spinoza@{old}"}, list[str]()
        adapters.loaded.users = lambda name: (asked.append(name), int(name in busy))[1]
        state = await adapters.changes.put("spinoza", source("file:kant"))
        new = serving(adapters)["spinoza"]
        assert new != old
        assert changes == [{"spinoza": new}]
        assert house.engine_log()[1:] == [f"load spinoza@{new}"]
        await until(lambda: len(asked) > 1, what="a look at who is being answered")
        assert len(house.engine_log()) == 2
        busy.clear()
        await drained(house, f"unload spinoza@{old}")
        (listed,) = read_adapters(house.path)
        assert listed == state.adapter
        assert (listed.release.source, listed.release.digest[:12]) == ("file:kant", new)
        assert [release.digest[:12] for release in listed.previous] == [old]
        assert house.path.read_text().startswith("# ours\n")

    run(house.engine(), scenario)


def test_who_speaks_again_while_a_lock_is_waited_for_is_not_unloaded(house: House) -> None:
    """Changes back and forth: a version that nobody used a moment ago was served once more meanwhile."""

    async def scenario(adapters: EngineAdapters) -> None:
        old = serving(adapters)["spinoza"]
        busy, asked = set[str](), list[str]()
        adapters.loaded.users = lambda name: (asked.append(name), int(name in busy))[1]
        version = adapters.wanted.states["spinoza"].serving
        assert version is not None
        await adapters.changes.put("spinoza", source("file:kant"))
        async with adapters.loaded.changing:
            await until(lambda: asked, what="a look at who is being answered")
            busy.add(f"spinoza@{old}")
            seen = len(asked)
        await until(lambda: len(asked) > seen + 1, what="another look, under the lock and after")
        assert f"unload spinoza@{old}" not in house.engine_log()
        busy.clear()
        await drained(house, f"unload spinoza@{old}")

    run(house.engine(), scenario)


def test_a_roll_back_goes_back_and_forth(house: House) -> None:
    """Without its source: the version is in the store."""

    async def scenario(adapters: EngineAdapters) -> None:
        old = serving(adapters)["spinoza"]
        with pytest.raises(AdapterError, match="no version before"):
            await adapters.changes.roll_back("spinoza")
        await adapters.changes.put("spinoza", source("file:kant"))
        new = serving(adapters)["spinoza"]
        shutil.rmtree(house.folder / "spinoza")
        await adapters.changes.roll_back("spinoza")
        assert serving(adapters) == {"spinoza": old}
        await adapters.changes.roll_back("spinoza")
        assert serving(adapters) == {"spinoza": new}
        assert len(read_adapters(house.path)[0].previous) == 1

    run(house.engine(), scenario)


def test_adapters_come_and_go(house: House) -> None:
    """What is removed is unloaded and not listed any more."""

    async def scenario(adapters: EngineAdapters) -> None:
        kant = adapters.wanted.parse({"name": "kant", "source": "file:kant", "base_model": "file:base"})
        await adapters.changes.put("kant", lambda listed: kant)
        assert sorted(serving(adapters)) == ["kant", "spinoza"]
        version = serving(adapters)["kant"]
        await adapters.changes.remove("kant")
        assert list(serving(adapters)) == ["spinoza"]
        await drained(house, f"unload kant@{version}")
        assert [adapter.name for adapter in read_adapters(house.path)] == ["spinoza"]
        with pytest.raises(AdapterError, match="listed are: spinoza"):
            await adapters.changes.remove("kant")
        with pytest.raises(AdapterError, match="is for Qwen/Qwen3-8B, the engine serves"):
            adapters.wanted.parse({"name": "kant", "source": "file:kant", "base_model": "Qwen/Qwen3-8B"})

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
            await adapters.changes.put("spinoza", source("file:kant"))
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
        assert house.engine_log()[1].startswith("unload spinoza@")
        with pytest.raises(AdapterError, match="reads like its base"):
            await adapters.changes.put("spinoza", source("file:kant"))

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
    run(house.engine(drift=0.6), refused)
    run(house.engine(drift=0.001), accepted)
    run(house.engine(drift=0.6, dtype="bfloat16"), accepted)


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
                await adapters.changes.put(name, same)  # pins it
                shutil.rmtree(house.folder / name)
            seen: list[dict[str, str]] = []
            adapters.wanted.changed = lambda: seen.append(serving(adapters))
            assert engine._boot is not None
            os.kill(engine._boot._pids["pids"][0][0], 9)
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
        engine = adapters.loaded.engine
        assert engine is not None
        await engine.client.unload(f"spinoza@{version}")
        adapters.loaded.reload(f"spinoza@{version}")
        adapters.loaded.reload("spinoza@nobody")
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
            await adapters.changes.put("spinoza", source("file:spinoza"))
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
        engine = adapters.loaded.engine
        assert engine is not None
        await engine.client.aclose()
        with pytest.raises(EngineError):
            await adapters.changes.put("spinoza", source("file:kant"))
        assert house.path.read_text() == text

    run(house.engine(), scenario)


# What happens at the same time


def test_a_change_waits_for_no_engine(house: House) -> None:
    """While it boots nothing can be proved: who asks is told so, and the list stays."""

    async def play() -> None:
        engine = house.engine(**{"boot-s": 5})
        adapters = engine.adapters
        assert adapters is not None
        text = house.path.read_text()
        await engine.start()
        try:
            await until(lambda: engine.state.phase == "starting", what="starting")
            with pytest.raises(EngineError, match="not ready"):
                await adapters.changes.put("spinoza", source("file:kant"))
        finally:
            await engine.stop()
        assert house.path.read_text() == text

    asyncio.run(play())


def test_an_engine_that_dies_while_the_list_is_written_proves_the_new_version_anew(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is listed is what the next life of the engine serves, and nothing answers in between."""
    edit = registry.edit

    async def scenario(adapters: EngineAdapters) -> None:
        loop = asyncio.get_running_loop()

        def slow(*arguments: Any) -> Any:
            died = threading.Event()
            loop.call_soon_threadsafe(lambda: (adapters.lost(), adapters.wanted.read(), died.set()))
            died.wait(10)
            return edit(*arguments)

        monkeypatch.setattr(registry, "edit", slow)
        state = await adapters.changes.put("spinoza", source("file:kant"))
        assert state.serving is None
        assert state.wanted is not None
        assert read_adapters(house.path)[0].release.digest == state.wanted.digest
        assert adapters.states["spinoza"] == state

    run(house.engine(), scenario)


def test_what_cannot_be_listed_does_not_stay_in_the_engine(house: House) -> None:
    """It is unloaded again, unless it is what answers, fetched from elsewhere."""
    shutil.copytree(house.folder / "spinoza", house.folder / "moved")

    async def scenario(adapters: EngineAdapters) -> None:
        before, text = serving(adapters), house.path.read_text()
        for folder in ("kant", "bergson", "moved"):
            house.path.write_text("no list")
            with pytest.raises(AdapterError, match="is not TOML"):
                await adapters.changes.put("spinoza", source(f"file:{folder}"))
            await until(lambda: not len(adapters.loaded.background), what="it is unloaded")
            house.path.write_text(text)
        assert serving(adapters) == before
        kinds = [line.partition("@")[0] for line in house.engine_log()]
        assert kinds == ["load spinoza", *("load spinoza", "unload spinoza") * 2]
        assert f"unload spinoza@{before['spinoza']}" not in house.engine_log()
        await adapters.changes.put("spinoza", source("file:kant"))
        assert serving(adapters) != before

    run(house.engine(), scenario)


def test_a_version_that_was_damaged_on_disk_is_not_loaded(house: House) -> None:
    """Not even into an engine that would take it: NaN would spoil every other answer."""

    async def play() -> None:
        engine = house.engine()
        adapters = engine.adapters
        assert adapters is not None
        await engine.start()
        try:
            await engine.wait_ready(30)
            version = adapters.states["spinoza"].serving
            assert version is not None
            file = version.folder / "adapter_model.safetensors"
            file.chmod(0o644)
            file.write_bytes(file.read_bytes()[:-2] + b"\xff\xff")
            assert engine._boot is not None
            os.kill(engine._boot._pids["pids"][0][0], 9)
            await until(lambda: engine.state.phase == "failed", what="failed")
            await engine.wait_ready(30)
            assert (adapters.states["spinoza"].phase, serving(adapters)) == ("refused", {})
            assert house.engine_log().count(f"load spinoza@{version.short}") == 1
        finally:
            await engine.stop()

    asyncio.run(play())


def test_an_adapter_may_be_removed_at_any_moment(house: House) -> None:
    """While the engine boots too: it becomes ready without it."""

    async def play() -> None:
        engine = house.engine(**{"boot-s": 2})
        adapters = engine.adapters
        assert adapters is not None
        await engine.start()
        try:
            await until(lambda: engine.state.phase != "stopped", what="a start")
            await adapters.changes.remove("spinoza")
            await engine.wait_ready(30)
            assert adapters.states == {}
        finally:
            await engine.stop()

    asyncio.run(play())


def test_an_adapter_that_cannot_be_loaded_again_speaks_no_more(house: House) -> None:
    """Its name is not left pointing at what the engine does not have."""

    async def scenario(adapters: EngineAdapters) -> None:
        version = adapters.states["spinoza"].serving
        engine = adapters.loaded.engine
        assert version is not None
        assert engine is not None
        await engine.client.unload(f"spinoza@{version.short}")
        shutil.rmtree(version.folder)
        for _ in range(50):
            adapters.loaded.reload(f"spinoza@{version.short}")
        assert len(adapters.loaded.background) == 1
        await until(lambda: adapters.states["spinoza"].phase == "refused", what="refused")
        assert serving(adapters) == {}

    run(house.engine(), scenario)


def test_two_changes_of_one_adapter_do_not_mix(house: House) -> None:
    """The second has decided on what is not there any more, and says so."""

    async def scenario(adapters: EngineAdapters) -> None:
        both = (adapters.changes.put("spinoza", source(f"file:{name}")) for name in ("kant", "bergson"))
        done = await asyncio.gather(*both, return_exceptions=True)
        (failed,) = [one for one in done if isinstance(one, Exception)]
        assert "changed by somebody else meanwhile" in str(failed)
        (listed,) = read_adapters(house.path)
        assert listed.release.digest is not None
        assert serving(adapters) == {"spinoza": listed.release.digest[:12]}

    run(house.engine(), scenario)


def test_the_name_of_another_models_adapter_is_taken(house: House) -> None:
    """Adding it would overwrite that entry."""
    with house.path.open("a") as file:
        file.write('\n[[adapter]]\nname = "kant"\nsource = "file:kant"\nbase_model = "Qwen/Qwen3-8B"\n')

    async def scenario(adapters: EngineAdapters) -> None:
        with pytest.raises(AdapterError, match="listed for another base model"):
            adapters.wanted.parse({"name": "kant", "source": "file:kant", "base_model": "file:base"})

    run(house.engine(), scenario)


def test_an_engine_whose_probe_is_no_probe_serves_its_base(house: House) -> None:
    """The adapters are refused with the reason; the engine is not started again and again for it."""

    async def scenario(adapters: EngineAdapters) -> None:
        assert adapters.states["spinoza"].phase == "refused"
        assert "cannot be probed" in adapters.states["spinoza"].detail

    run(house.engine(**{"no-logprobs": True}), scenario)


def test_whatever_breaks_the_engine_is_watched_on(house: House) -> None:
    """An error of sive's own is a death like any other."""

    async def play() -> None:
        engine = house.engine()
        adapters = engine.adapters
        assert adapters is not None
        prepare, broken = adapters.prepare, [True]

        async def breaks(weights: Path | None = None) -> Any:
            if broken:
                broken.clear()
                raise KeyError("a mistake")
            return await prepare(weights)

        adapters.prepare = breaks  # type: ignore[method-assign]
        await engine.start()
        try:
            await until(lambda: engine.state.phase == "failed", what="failed")
            assert "an error in sive itself" in engine.state.detail
            await engine.wait_ready(30)
        finally:
            await engine.stop()

    asyncio.run(play())
