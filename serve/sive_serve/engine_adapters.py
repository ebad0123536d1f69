"""The adapters an engine should serve: fetched, checked, loaded, proved, and changed while others talk.

An adapter is loaded under a name of its own per version, ``spinoza@9f3c21ab77e0``, from a folder that never
changes; what callers ask for as ``spinoza`` points at one of them. A new version is loaded and proved beside
the old one before the pointer moves, and the old one is unloaded when nobody is being answered by it
(docs/adr/0008-an-adapter-is-its-content.md).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sive.errors import AdapterError, EngineError, SiveError
from sive_adapters import registry
from sive_adapters.base_model import read_base_model
from sive_adapters.check import check, lora_rank
from sive_adapters.entries import MAX_PREVIOUS
from sive_adapters.registry import Adapter, Release
from sive_adapters.sources import parse
from sive_adapters.store import Progress, Store, Version

from sive_serve.adapter_state import AdapterState, Phase, engine_name
from sive_serve.daemon_thread import in_thread
from sive_serve.engine_loras import EngineLoras

RETRY_S = (15.0, 30.0, 60.0, 120.0, 300.0)
"""Waits between attempts to fetch what could not be fetched; the last one is repeated."""

PREPARE_S = 600.0
"""How long an engine's start waits for an adapter; one that takes longer comes when it is there."""

DRAIN_S, DRAIN_POLL_S = 600.0, 0.2
"""How long an old version is kept for the answers that it is giving; vLLM finishes them even without it."""

PREPARED_AT_ONCE = 4

log = logging.getLogger(__name__)

Told = Callable[[Phase, Progress | None], None]
"""What a change is doing, and while it fetches how far that is."""

Wish = Callable[[Adapter | None], Adapter]
"""Makes what is wanted from what is listed.

Raises:
    AdapterError: it cannot be wanted.
"""


def nobody(phase: Phase, progress: Progress | None) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine is started for: how many adapters, and their largest rank."""

    count: int = 0
    max_rank: int = 0


class EngineAdapters:
    """The desired adapters of one base model, and what became of each: ``states``, by name.

    ``path``: the list. ``model``: the base model, a hub id or an absolute folder. ``changed`` is called when
    another version answers; ``users`` says how many requests are being answered under an engine's name;
    ``base_name`` is taken. ``elsewhere``: names that the list has for other base models.

    Fetching and checking may go on beside anything; whoever loads, proves, lists or unloads holds one lock,
    and looks again at what is wanted, and at which life of the engine it is, after it has waited.

    Raises:
        AdapterError: the list cannot be read.
    """

    def __init__(self, path: Path, store: Store, *, model: str) -> None:
        self.base_name = ""
        self.changed: Callable[[], None] = lambda: None
        self.users: Callable[[str], int] = lambda name: 0
        self.states: dict[str, AdapterState] = {}
        self.elsewhere: tuple[str, ...] = ()
        self._path = path
        self._store = store
        self._model = model
        self._weights: Path | None = None
        self._engine: EngineLoras | None = None
        self._changing = asyncio.Lock()
        self._preparing = asyncio.Semaphore(PREPARED_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading: set[str] = set()
        self._is_closed = False
        self._read()

    def _read(self) -> None:
        """Read the list; what is known of an adapter that is wanted as before is kept."""
        ours, self.elsewhere = registry.adapters_for(registry.read_adapters(self._path), self._model)
        before = self.states
        self.states = {}
        for adapter in ours:
            known = before.get(adapter.name, AdapterState(adapter))
            is_same = known.adapter.release == adapter.release
            self.states[adapter.name] = (
                replace(known, adapter=adapter) if is_same else AdapterState(adapter, serving=known.serving)
            )

    def fetching(self) -> list[Progress]:
        """How far each adapter is that is being fetched."""
        return [state.progress for state in self.states.values() if state.progress is not None]

    # An engine's life

    async def prepare(self, weights: Path | None = None) -> Capacity:
        """Fetch and check what is wanted, before an engine starts: it has to know the largest rank.

        ``weights``: the folder of the base model, where it is known. What cannot be had is left out and tried
        again later: an engine that serves most is worth more than none.
        """
        self._weights = weights
        with _logged("the list of adapters is not read again"):
            self._read()
        await asyncio.gather(*(self._prepare(name) for name in list(self.states)))
        return Capacity(len(self.states), await in_thread(self._largest_rank_of(list(self.states.values()))))

    async def settle(self, engine: EngineLoras, proving: Callable[[], None] = lambda: None) -> None:
        """Load every wanted version into an engine that has just started, prove it, and serve what is itself.

        ``proving`` is called when all are loaded.

        Raises:
            EngineError: the engine does not answer.
        """
        async with self._changing:
            self._engine = engine
            wanted = {name: state.wanted for name, state in self.states.items() if state.wanted is not None}
            await _together(self._load(name, version) for name, version in wanted.items())
            proving()
            await _together(self._prove(name, version) for name, version in wanted.items())
            with _logged("old versions are not removed"):
                await self._collect()
        for name, state in self.states.items():
            if state.is_retried:
                self._spawn(self._retry(name))

    def lost(self) -> None:
        """The engine is gone, and with it all that it had loaded."""
        self._engine = None
        for task in self._tasks:
            task.cancel()
        self._reloading.clear()
        for name, state in self.states.items():
            phase: Phase = "refused" if state.phase == "refused" else "waiting"
            self.states[name] = replace(state, serving=None, phase=phase, progress=None)
        self._announce()

    async def aclose(self) -> None:
        """Stop what is under way; a download goes on from where it was the next time."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Changes

    async def put(self, name: str, wish: Wish, *, told: Told = nobody) -> AdapterState:
        """Serve an adapter, or another version of it, and list it once it has proved itself.

        Raises:
            AdapterError: it cannot be had, is not fit, does not speak as itself, or was changed meanwhile;
                what was served goes on.
            EngineError: the engine is not ready, or failed on the way.
        """
        before = self._listed(name)
        adapter = wish(before)
        self._running()
        version = await self._fetch(adapter, told)
        told("checking", None)
        await self._check(adapter, version)
        async with self._changing:
            if self._listed(name) != before:
                raise AdapterError(f"adapter {name!r} was changed by somebody else meanwhile: try again")
            engine = self._running()
            told("loading", None)
            await engine.load(name, version)
            told("probing", None)
            await self._prove_or_unload(engine, name, version)
            release = Release(adapter.release.source, version.sha256)
            await self._list(replace(adapter, release=release), version)
            if self._engine is engine:  # another life of it has yet to load what is listed now
                self._flip(name, version)
            return self.states[name]  # within the lock: who waits for it may remove the adapter

    async def roll_back(self, name: str, *, told: Told = nobody) -> AdapterState:
        """Serve the version before; once more, and it is the one after it again.

        Raises:
            AdapterError: there is none, or as for ``put``.
            EngineError: as for ``put``.
        """

        def previous(listed: Adapter | None) -> Adapter:
            adapter = listed or self.wanted(name)
            if not adapter.previous:
                raise AdapterError(f"adapter {name!r} has no version before this one to go back to")
            return replace(adapter, release=adapter.previous[0])

        return await self.put(name, previous, told=told)

    async def remove(self, name: str) -> None:
        """Serve it no more, and take it off the list; what is being answered is finished.

        Raises:
            AdapterError: it is not listed, or the list cannot be written.
        """
        async with self._changing:
            self.wanted(name)
            await in_thread(lambda: registry.edit(self._path, lambda listed: _without(listed, name)))
            state = self.states.pop(name, None)
            self._announce()
            if state is not None and state.serving is not None:
                self._spawn(self._drain(name, state.serving))

    def reload(self, theirs: str) -> None:
        """Load and prove an adapter again that the engine says it does not know, by the engine's name."""
        for name, state in self.states.items():
            if state.engine_name == theirs and name not in self._reloading:
                self._reloading.add(name)
                self._spawn(self._reload(name))

    def parse(self, keys: Mapping[str, Any]) -> Adapter:
        """Return the adapter that these keys of an ``[[adapter]]`` describe.

        Raises:
            AdapterError: one is wrong, it is for another base model, or its name is taken.
        """
        adapter = registry.parse_adapter(keys, self._path)
        if adapter.name == self.base_name:
            raise AdapterError(f"{adapter.name!r} is the name of the base model: choose another")
        if adapter.name in self.elsewhere:
            raise AdapterError(f"{adapter.name!r} is listed for another base model: choose another name")
        ours, _ = registry.adapters_for((adapter,), self._model)
        if not ours:
            raise AdapterError(
                f"adapter {adapter.name!r} is for {adapter.base_model}, the engine serves {self._model}"
            )
        return adapter

    @property
    def listed_base_model(self) -> str:
        """How the engine's base model is written in the list."""
        return f"file:{self._model}" if Path(self._model).is_absolute() else self._model

    def wanted(self, name: str) -> Adapter:
        """Return an adapter that is listed.

        Raises:
            AdapterError: it is not.
        """
        if name not in self.states:
            known = ", ".join(self.states) or "none"
            raise AdapterError(f"there is no adapter {name!r} for {self._model}; listed are: {known}")
        return self.states[name].adapter

    # Before an engine starts

    async def _prepare(self, name: str) -> None:
        """Have a version of an adapter on disk, and know that it may be loaded."""
        adapter = self.states[name].adapter
        try:
            async with self._preparing, asyncio.timeout(PREPARE_S):
                version = await self._fetch_or_find(adapter)
        except TimeoutError:
            self._refuse(adapter, f"adapter {name!r} is not here after {PREPARE_S:.0f} s", is_retried=True)
            return
        except SiveError as exc:
            self._refuse(adapter, str(exc), is_retried=True)
            return
        self._enter(adapter, "checking")
        try:
            async with self._preparing:
                await self._check(adapter, version)
        except SiveError as exc:
            self._refuse(adapter, str(exc))
        else:
            self._update(adapter, wanted=version, phase="waiting", detail="", progress=None, is_retried=False)

    async def _fetch_or_find(self, adapter: Adapter) -> Version:
        """Return a version to start with: what is not pinned may be what its source held the last time.

        Raises:
            AdapterError: it cannot be had, and never was.
        """
        known = self.states[adapter.name].wanted
        if known is not None and await in_thread(known.folder.is_dir):
            return known  # a restart is no wish for another voice
        try:
            return await self._fetch(adapter, partial(self._progressed, adapter))
        except AdapterError as exc:
            if adapter.release.sha256:
                raise
            source = parse(adapter.release.source, self._path.parent)
            found = await in_thread(lambda: self._store.latest(adapter.name, source))
            if found is None:
                raise
            log.warning("adapter %r: %s; what was fetched before is served", adapter.name, exc)
            return found

    async def _fetch(self, adapter: Adapter, told: Told) -> Version:
        release, loop = adapter.release, asyncio.get_running_loop()
        if found := await in_thread(lambda: self._store.find(adapter.name, release.sha256)):
            return found

        def progressed(progress: Progress) -> None:
            if self._is_closed:
                raise AdapterError("sive is stopping")
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(told, "fetching", progress)

        told("fetching", None)
        source = parse(release.source, self._path.parent)
        return await in_thread(
            lambda: self._store.fetch(adapter.name, source, release.sha256, told=progressed)
        )

    def _progressed(self, adapter: Adapter, phase: Phase, progress: Progress | None) -> None:
        self._update(adapter, phase=phase, progress=progress)

    async def _check(self, adapter: Adapter, version: Version) -> None:
        """Look at a version before anything loads it.

        Raises:
            AdapterError: it must not be loaded.
        """
        max_rank = None if self._engine is None else self._engine.max_rank
        base = self._model if self._weights is None else str(self._weights)
        findings = await in_thread(
            lambda: check(
                version.folder,
                read_base_model(base),
                max_lora_rank=max_rank,
                base_model=adapter.base_model,
            )
        )
        for finding in findings:
            if not finding.is_fatal:
                log.warning("adapter %r: %s", adapter.name, finding.message)
        if fatal := [finding.message for finding in findings if finding.is_fatal]:
            raise AdapterError(f"adapter {adapter.name!r} is not fit to be served: {'; '.join(fatal)}")

    def _largest_rank_of(self, states: list[AdapterState]) -> Callable[[], int]:
        """The largest rank of what will be loaded, and of what a rollback may want."""

        def largest() -> int:
            ranks = [0]
            for state in states:
                before = (self._store.find(state.adapter.name, one.sha256) for one in state.adapter.previous)
                for version in (state.wanted, *before):
                    with contextlib.suppress(AdapterError):
                        ranks.append(0 if version is None else lora_rank(version.folder))
            return max(ranks)

        return largest

    # On a running engine, holding the lock

    async def _load(self, name: str, version: Version) -> None:
        """Load a version, or refuse it; an engine that is gone is not its fault."""
        if (adapter := self._listed(name)) is None:
            return
        self._enter(adapter, "loading")
        try:
            await self._running().load(name, version)
        except AdapterError as exc:
            self._refuse(adapter, str(exc))

    async def _prove(self, name: str, version: Version) -> None:
        """Serve a loaded version, or refuse it."""
        state = self.states.get(name)
        if state is None or state.wanted != version:
            return  # it was refused, or is not wanted any more
        self._enter(state.adapter, "probing")
        try:
            await self._prove_or_unload(self._running(), name, version)
        except AdapterError as exc:
            self._refuse(state.adapter, str(exc))
            return
        now = self.states.get(name)
        if now is not None and now.wanted == version and self._engine is not None:
            self._flip(name, version)

    async def _prove_or_unload(self, engine: EngineLoras, name: str, version: Version) -> None:
        try:
            await engine.prove(name, version)
        except AdapterError:
            state = self.states.get(name)
            if state is None or state.serving != version:
                await engine.unload(name, version)
            raise

    async def _list(self, adapter: Adapter, version: Version) -> None:
        """Write an adapter to the list, the version it had before to its ``previous``."""
        before = self.states.get(adapter.name)
        had = None if before is None else before.serving or before.wanted
        listed = await in_thread(
            lambda: registry.edit(self._path, lambda listed: _with(listed, adapter, had=had))
        )
        written = next(one for one in listed if one.name == adapter.name)
        now = self.states.get(adapter.name)  # the engine may have died meanwhile
        self.states[adapter.name] = AdapterState(
            written, wanted=version, serving=None if now is None else now.serving
        )

    def _flip(self, name: str, version: Version) -> None:
        """From now on this version answers under the adapter's name."""
        before = self.states[name].serving
        self.states[name] = replace(
            self.states[name], phase="serving", detail="", progress=None, serving=version
        )
        self._announce()
        log.info("adapter %r: version %s answers", name, version.short)
        if before is not None and before.digest != version.digest:
            self._spawn(self._drain(name, before))

    async def _collect(self) -> None:
        """Remove versions that nobody goes back to; now, because an engine needs the folders it has loaded.

        Of adapters that others may list nothing is removed.
        """
        kept = {
            name: (state.wanted, state.adapter.release, *state.adapter.previous)
            for name, state in self.states.items()
        }
        await in_thread(lambda: _collect(self._store, kept))

    async def _drain(self, name: str, version: Version) -> None:
        """Unload a version once nobody is being answered by it, unless it is wanted again."""
        theirs = engine_name(name, version)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self.users(theirs):  # noqa: ASYNC110 - looked at rarely, instead of told at each end
                    await asyncio.sleep(DRAIN_POLL_S)
        async with self._changing:  # a rollback may be about to serve it
            is_serving = any(state.engine_name == theirs for state in self.states.values())
            if self._engine is None or is_serving:
                return
            with _logged(f"{theirs} is not unloaded"):
                await self._engine.unload(name, version)

    async def _reload(self, name: str) -> None:
        async with self._changing:
            self._reloading.discard(name)
            state = self.states.get(name)
            if state is None or state.wanted is None or self._engine is None:
                return
            with _logged(f"adapter {name!r} is not loaded again"):
                await self._load(name, state.wanted)
                await self._prove(name, state.wanted)

    async def _retry(self, name: str) -> None:
        """Fetch what could not be fetched until it can be, or is not wanted any more."""
        attempt = 0
        while True:
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1
            if name not in self.states or not self.states[name].is_retried:
                return
            await self._prepare(name)
            if name in self.states and self.states[name].wanted is not None:
                await self._reload(name)
                return

    # Small things

    def _listed(self, name: str) -> Adapter | None:
        state = self.states.get(name)
        return None if state is None else state.adapter

    def _running(self) -> EngineLoras:
        if self._engine is None:
            raise EngineError("the engine is not ready: try again when it is")
        return self._engine

    def _update(self, adapter: Adapter, **changes: Any) -> None:
        """Note what became of an adapter, if it is still what is wanted."""
        state = self.states.get(adapter.name)
        if state is not None and state.adapter.release == adapter.release:
            self.states[adapter.name] = replace(state, **changes)

    def _enter(self, adapter: Adapter, phase: Phase) -> None:
        """Show a phase, unless a version goes on answering meanwhile."""
        state = self.states.get(adapter.name)
        if state is not None and state.serving is None:
            self._update(adapter, phase=phase, progress=None)

    def _refuse(self, adapter: Adapter, why: str, *, is_retried: bool = False) -> None:
        """Nobody speaks under its name."""
        log.error("%s", why)
        self._update(
            adapter,
            phase="refused",
            detail=why,
            progress=None,
            wanted=None,
            serving=None,
            is_retried=is_retried,
        )
        self._announce()

    def _announce(self) -> None:
        try:
            self.changed()
        except Exception:  # whatever a listener stumbles over, the engine is watched on
            log.exception("the routes were not built anew")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("the engine's adapters: a task failed", exc_info=failure)


def _with(listed: tuple[Adapter, ...], adapter: Adapter, *, had: Version | None) -> tuple[Adapter, ...]:
    """The list with this adapter in it, remembering the version that it ``had``, pinned or not."""
    before = next((one for one in listed if one.name == adapter.name), None)
    if before is None:
        return (*listed, adapter)
    if before.base_model != adapter.base_model:
        raise AdapterError(f"{adapter.name!r} is listed for another base model: choose another name")
    release = before.release
    if had is not None and not release.sha256:
        release = Release(release.source, had.sha256)
    past = [one for one in (release, *before.previous) if one.sha256 not in ({}, adapter.release.sha256)]
    new = replace(adapter, previous=tuple(past[:MAX_PREVIOUS]))
    return tuple(new if one.name == adapter.name else one for one in listed)


def _without(listed: tuple[Adapter, ...], name: str) -> tuple[Adapter, ...]:
    return tuple(one for one in listed if one.name != name)


def _collect(store: Store, kept: Mapping[str, tuple[Version | Release | None, ...]]) -> None:
    stale: set[Path] = set()
    for name, wanted in kept.items():
        digests = {one.digest for one in wanted if one is not None}
        stale |= {version.folder for version in store.versions(name) if version.digest not in digests}
    store.collect(set(store.root.glob("[!.]*/*")) - stale)


async def _together(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all of it; when one fails none goes on."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log an error of ours and go on."""
    try:
        yield
    except SiveError as exc:
        log.warning("%s: %s", what, exc)
