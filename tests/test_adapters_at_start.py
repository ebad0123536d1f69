"""What an engine starts with when sources crawl, lie, or are shared, and what happens while it gets ready."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sive.errors import AdapterError
from sive_adapters.lease import Lease
from sive_adapters.registry import read_adapters
from sive_serve import engine_adapters
from sive_serve.adapter_versions import AdapterVersions
from sive_serve.engine_adapters import EngineAdapters

from tests.conftest import until as waited
from tests.lab.adapters import of_rank
from tests.lab.buckets import WEIGHTS
from tests.lab.gcs import ObjectStore
from tests.test_engine import until
from tests.test_engine_adapters import House, drained, run, same, serving, source

OBJECTS = "adapters/kant"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ObjectStore]:
    """A web folder that an adapter is fetched from."""
    with ObjectStore(tmp_path / "objects") as lab:
        yield lab


@pytest.fixture
def house(tmp_path: Path, lab: ObjectStore) -> House:
    """A list with an adapter on this machine, and one from that web folder."""
    house = House(tmp_path, "spinoza")
    shutil.copytree(tmp_path / "kant", tmp_path / "objects" / OBJECTS)
    with house.path.open("a") as file:
        file.write(
            f'\n[[adapter]]\nname = "kant"\nsource = "{lab.url}/{OBJECTS}"\nbase_model = "file:base"\n'
        )
    return house


@pytest.fixture
def gate(lab: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The web folder gives the small file, and holds the weights back until this is set."""
    monkeypatch.setattr(engine_adapters, "START_S", 0.5)
    gate = threading.Event()
    lab.faults.on_bytes = lambda sent: None if sent == 0 else _pass(gate)
    yield gate
    gate.set()


def _pass(gate: threading.Event) -> None:
    gate.wait(60)


def test_a_crawling_source_holds_nobody_up(house: House, gate: threading.Event) -> None:
    """The others answer; it answers when it is there, on the engine that knew its rank from the start."""
    of_rank(32, "kant", house.folder / "objects" / OBJECTS)

    async def scenario(adapters: EngineAdapters) -> None:
        assert list(serving(adapters)) == ["spinoza"]
        assert adapters.states["kant"].phase == "fetching"
        assert adapters.loaded.max_rank == 32
        gate.set()
        await until(lambda: "kant" in serving(adapters), what="it is there")

    run(house.engine(), scenario)


def test_what_a_crawling_source_gave_before_is_served_meanwhile(
    house: House, lab: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it gives now replaces it when it is there; if that is not fit, the old one goes on."""
    weights = house.folder / "objects" / OBJECTS / WEIGHTS
    old: list[str] = []

    async def before(adapters: EngineAdapters) -> None:
        old.append(serving(adapters)["kant"])

    run(house.engine(), before)
    for spoilt in (True, False):
        raw = (house.folder / ("kant" if spoilt else "bergson") / WEIGHTS).read_bytes()
        weights.write_bytes(raw[:-2] + b"\xff\xff" if spoilt else raw)
        gate = threading.Event()
        sent = sum(lab.sent.values())
        lab.faults.on_bytes = lambda now, gate=gate, sent=sent: None if now == sent else _pass(gate)  # type: ignore[misc]
        monkeypatch.setattr(engine_adapters, "START_S", 0.5)

        async def scenario(
            adapters: EngineAdapters, gate: threading.Event = gate, spoilt: bool = spoilt
        ) -> None:
            assert serving(adapters)["kant"] == old[0]
            gate.set()
            if spoilt:
                await until(lambda: "not fit" in adapters.states["kant"].detail, what="it was looked at")
                assert serving(adapters)["kant"] == old[0]
            else:
                await until(lambda: serving(adapters).get("kant") not in (None, old[0]), what="the new one")
                await drained(house, f"unload kant@{old[0]}")

        run(house.engine(), scenario)


def test_a_download_goes_on_while_the_engine_dies(house: House, gate: threading.Event) -> None:
    """It is not begun anew, and what it brings is served by the next life."""

    async def scenario(adapters: EngineAdapters) -> None:
        engine = adapters.loaded.running()
        attempt = adapters._attempts["kant"].task
        adapters.lost()
        await adapters.prepare()
        assert adapters._attempts["kant"].task is attempt
        await adapters.settle(engine)
        gate.set()
        await until(lambda: "kant" in serving(adapters), what="kant serves")

    run(house.engine(), scenario)


@pytest.mark.parametrize("is_own_fault", [False, True])
def test_a_voice_that_answers_goes_on_when_what_replaces_it_cannot_be_kept(
    house: House, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, is_own_fault: bool
) -> None:
    """A store that takes no lease is tried until it does; an error of sive's own takes no voice away."""
    monkeypatch.setattr(engine_adapters, "RETRY_S", (0.05,))
    old: list[str] = []

    async def before(adapters: EngineAdapters) -> None:
        old.append(serving(adapters)["kant"])

    async def scenario(adapters: EngineAdapters) -> None:
        leases, tries = house.folder / "store" / ".leases", list[Path]()
        shutil.rmtree(leases)
        leases.touch()  # a folder that cannot be made, for root as well
        hold = Lease.hold

        def noted(self: Lease, folder: Path) -> bool:
            tries.append(folder)
            if is_own_fault:
                raise KeyError("a mistake")
            return hold(self, folder)

        monkeypatch.setattr(Lease, "hold", noted)
        gate.set()
        await until(lambda: len(tries) > (0 if is_own_fault else 2), what="it was tried")
        await until(lambda: adapters.states["kant"].phase == "serving", what="it goes on")
        state = adapters.states["kant"]
        assert serving(adapters)["kant"] == old[0]
        assert state.is_retried is not is_own_fault
        assert ("an error in sive itself" if is_own_fault else "lease") in state.detail
        leases.unlink()
        if not is_own_fault:
            await until(lambda: serving(adapters)["kant"] != old[0], what="the new one")
            assert adapters.states["kant"].detail == ""

    gate.set()
    run(house.engine(), before)
    gate.clear()
    shutil.copy(house.folder / "bergson" / WEIGHTS, house.folder / "objects" / OBJECTS / WEIGHTS)
    run(house.engine(), scenario)


def test_a_wrong_pin_is_fetched_twice(
    house: House, lab: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is looked at; again when it or the entry changes, and when somebody asks for it."""
    monkeypatch.setattr(engine_adapters, "RETRY_S", (0.05,))
    wrong = {"adapter_config.json": _sha256(house.folder / "kant" / "adapter_config.json"), WEIGHTS: "0" * 64}
    pins = "sha256 = { " + ", ".join(f'"{name}" = "{digest}"' for name, digest in wrong.items()) + " }\n"
    with house.path.open("a") as file:
        file.write(pins)
    size = (house.folder / "kant" / WEIGHTS).stat().st_size
    key = f"{OBJECTS}/{WEIGHTS}"

    async def refused(adapters: EngineAdapters) -> None:
        assert "is pinned" in adapters.states["kant"].detail
        looks = lab.seen.count(f"HEAD {key}")
        await until(lambda: lab.seen.count(f"HEAD {key}") > looks + 3, what="looked at again")
        assert lab.sent[key] == 2 * size
        assert "refused.json" in adapters.states["kant"].detail

    run(house.engine(), refused)
    run(house.engine(), refused)

    async def asked(adapters: EngineAdapters) -> None:
        with pytest.raises(AdapterError, match="is pinned"):
            await adapters.changes.put("kant", same, is_automatic=True)
        assert lab.sent[key] == 2 * size
        with pytest.raises(AdapterError, match="is pinned"):
            await adapters.changes.put("kant", same)
        assert lab.sent[key] == 3 * size

    run(house.engine(), asked)

    async def again(adapters: EngineAdapters) -> None:
        os.utime(house.folder / "objects" / key, (1, 1))
        await until(lambda: lab.sent[key] == 5 * size, what="the object changed")

    run(house.engine(), again)

    async def right(adapters: EngineAdapters) -> None:
        assert sorted(serving(adapters)) == ["kant", "spinoza"]

    house.path.write_text(house.path.read_text().replace("0" * 64, _sha256(house.folder / "kant" / WEIGHTS)))
    run(house.engine(), right)


def test_an_engine_that_is_full_takes_no_more(house: House) -> None:
    """It would read adapters from disk within its steps: the way out is said, and changes still go."""

    async def scenario(adapters: EngineAdapters) -> None:
        def new(name: str) -> Any:
            keys = {"name": name, "source": "file:kant", "base_model": "file:base"}
            return lambda listed: adapters.wanted.parse(keys)

        for name in ("third", "fourth", "fifth"):
            await adapters.changes.put(name, new(name))
        with pytest.raises(AdapterError, match=r"keep 6 adapters in memory, 5 are listed.*max_cpu_loras"):
            await adapters.changes.put("sixth", new("sixth"))
        assert len(read_adapters(house.path)) == 5
        await adapters.changes.put("spinoza", source("file:bergson"))
        await adapters.changes.remove("third")
        await adapters.changes.put("sixth", new("sixth"))
        assert "sixth" in serving(adapters)

    run(house.engine(), scenario)


@pytest.mark.parametrize("moment", ["loading", "proving", "collecting"])
def test_a_change_that_comes_while_the_engine_gets_ready_is_done(
    house: House, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late: it waits its turn, nobody takes its files away, and it is what is served and listed."""

    async def play() -> None:
        engine = house.engine()
        adapters = engine.adapters
        assert adapters is not None
        changes: list[asyncio.Task[Any]] = []

        async def begin() -> None:
            changes.append(asyncio.create_task(adapters.changes.put("spinoza", source("file:bergson"))))
            changes.append(asyncio.create_task(adapters.changes.remove("kant")))
            await until(lambda: any(adapters._versions._in_hand.values()), what="fetched")

        collect, settle = AdapterVersions.collect, type(adapters.loaded).settle

        async def slow_collect(self: AdapterVersions) -> None:
            if moment == "collecting":
                await begin()
            await collect(self)

        async def slow_settle(self: Any, loras: Any, proving: Callable[[], None]) -> None:
            self.engine = loras
            if moment == "loading":
                await begin()
            await settle(self, loras, proving)
            if moment == "proving":
                await begin()

        monkeypatch.setattr(AdapterVersions, "collect", slow_collect)
        monkeypatch.setattr(type(adapters.loaded), "settle", slow_settle)
        await engine.start()
        try:
            await engine.wait_ready(30)
            await asyncio.gather(*changes)
            (listed,) = read_adapters(house.path)
            assert listed.release.source == "file:bergson"
            assert listed.release.digest is not None
            assert serving(adapters) == {"spinoza": listed.release.digest[:12]}
        finally:
            await engine.stop()

    asyncio.run(play())


# A store that others use too


HOLDER = """
import sys, time
from pathlib import Path
from sive_adapters.lease import Lease
lease = Lease(Path(sys.argv[1]))
for folder in sys.argv[2:]:
    assert lease.hold(Path(folder))
print("held", flush=True)
time.sleep(600)
"""


def test_what_another_process_serves_is_not_removed(house: House) -> None:
    """Though this one's list has no use for it; once that one has been killed, it is."""
    folders: list[Path] = []

    async def first(adapters: EngineAdapters) -> None:
        version = adapters.states["spinoza"].serving
        assert version is not None
        folders.append(version.folder)

    async def changed(adapters: EngineAdapters) -> None:
        assert folders[0].is_dir()

    async def gone(adapters: EngineAdapters) -> None:
        assert not folders[0].exists()

    run(house.engine(), first)
    shutil.copytree(house.folder / "bergson", house.folder / "spinoza", dirs_exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(house.folder / "store"), str(folders[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            run(house.engine(), changed)
        finally:
            holder.send_signal(signal.SIGKILL)
    run(house.engine(), gone)


def test_two_pods_with_lists_of_their_own_share_a_store(house: House, tmp_path: Path) -> None:
    """One goes on to another version and starts anew; the other's engine still finds what it has loaded."""
    other = tmp_path / "other.toml"
    other.write_text(house.path.read_text())

    async def there(adapters: EngineAdapters) -> None:
        mine = adapters.states["spinoza"].serving
        assert mine is not None

        def elsewhere() -> None:
            code = (
                "import asyncio, sys; sys.path.insert(0, sys.argv[1])\n"
                "from pathlib import Path\n"
                "from tests.test_adapters_at_start import other_pod\n"
                "other_pod(Path(sys.argv[2]))\n"
            )
            root = str(Path(__file__).parent.parent)
            subprocess.run([sys.executable, "-c", code, root, str(tmp_path)], check=True, timeout=120)

        await asyncio.to_thread(elsewhere)
        assert mine.folder.is_dir()
        await adapters.changes.put("spinoza", same)
        assert adapters.states["spinoza"].phase == "serving"

    run(house.engine(), there)


def other_pod(folder: Path) -> None:
    """Serve from another list, update, forget what was before, and start the engine anew."""
    house = object.__new__(House)
    house.folder, house.path, house.log = folder, folder / "other.toml", folder / "other.log"

    async def change(adapters: EngineAdapters) -> None:
        await adapters.changes.put("spinoza", source("file:bergson"))

    async def nothing(adapters: EngineAdapters) -> None:
        assert serving(adapters)

    run(house.engine(), change)
    text = house.path.read_text()
    house.path.write_text(
        text[: text.index("[[adapter.previous]]")] if "[[adapter.previous]]" in text else text
    )
    run(house.engine(), nothing)


def test_leases_of_the_dead_and_of_the_forgotten_hold_nothing(tmp_path: Path) -> None:
    """A process of this machine that has ended; one elsewhere that was not heard of for a day."""
    here = Lease(tmp_path)
    version = tmp_path / "spinoza" / "0123456789ab"
    version.mkdir(parents=True)
    elsewhere = Lease(tmp_path)
    assert elsewhere.hold(version)
    file = elsewhere._file
    said = json.loads(file.read_text())
    assert here.others() == {version}
    file.write_text(json.dumps({**said, "machine": "another", "pid": 999_999_999}))
    assert here.others() == {version}
    os.utime(file, (1, 1))
    assert here.others() == set()
    assert not file.exists()
    elsewhere.renew()
    assert here.others() == {version}
    file.write_text(json.dumps({**said, "pid": 999_999_999}))
    assert here.others() == set()
    elsewhere.release()
    shutil.rmtree(version)
    assert not here.hold(version)
    waited(lambda: here.others() == set())


def _sha256(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()
