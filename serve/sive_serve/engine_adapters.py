"""The adapters of one engine: fetched, checked, loaded, proved to speak, changed while others talk.

An adapter is loaded under a name of its own per version, ``spinoza@9f3c21ab77e0``, from a folder that never
changes; what callers ask for as ``spinoza`` points at one of them. A new version is loaded and proved beside
the old one before the pointer moves, and the old one is unloaded when nobody is being answered by it. (vLLM's
own ``load_inplace`` reads the folder again at every step, and an evicted adapter whose folder is gone ends
the engine: docs/adr/0008.)
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sive.errors import AdapterError, EngineError, SiveError
from sive_adapters import identity, registry
from sive_adapters.base_model import BaseModel
from sive_adapters.check import check, lora_rank
from sive_adapters.registry import Adapter, Release
from sive_adapters.sources import parse
from sive_adapters.store import Progress, Store, Version

from sive_serve.daemon_thread import in_thread
from sive_serve.engine_client import EngineClient

Phase = Literal["waiting", "fetching", "checking", "loading", "probing", "serving", "refused"]

LOADS_AT_ONCE = 4
RETRY_S = (15.0, 30.0, 60.0, 120.0, 300.0)
"""Waits between attempts to fetch what could not be fetched."""

DRAIN_S = 600.0
"""How long an old version is kept for the answers that it is giving; vLLM finishes them even without it."""

DRAIN_POLL_S = 0.2

log = logging.getLogger(__name__)

Told = Callable[[str, Progress | None], None]
"""What a change is doing: a phase, and in "fetching" how far it is."""


@dataclass(frozen=True, slots=True)
class AdapterState:
    """What is known of one desired adapter.

    ``serving``: the version that answers under its name now, which while it is being replaced is not
    the desired one. ``detail``: why it is refused. ``is_pinned``: the list says what its files must be.
    """

    adapter: Adapter
    phase: Phase = "waiting"
    detail: str = ""
    wanted: Version | None = None
    serving: Version | None = None
    progress: Progress | None = None
    is_retried: bool = False

    @property
    def is_pinned(self) -> bool:
        """Are its files' hashes written in the list?"""
        return bool(self.adapter.release.sha256)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine has to be started with: adapters it will hold at once, and their largest rank."""

    count: int
    max_rank: int


def engine_name(name: str, version: Version) -> str:
    """Return what the engine calls one version of an adapter."""
    return f"{name}@{version.short}"


@dataclass(slots=True)
class _Engine:
    """A running engine: its API, its kind, how its base model reads the probe, the largest rank it takes."""

    client: EngineClient
    kind: identity.EngineKind
    base: identity.Fingerprint
    max_rank: int
    loads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LOADS_AT_ONCE))


class EngineAdapters:
    """The desired adapters of one base model and what the engine makes of them.

    ``path``: the list they are read from, None for none. ``base``: facts about the base model, as far as they
    are known. ``base_name``: what the engine calls it. ``changed`` is called when another version answers;
    ``users`` says how many requests are being answered under an engine's name.
    """

    def __init__(
        self,
        path: Path | None,
        store: Store,
        *,
        model: str,
        base: BaseModel | None,
        base_name: str,
        changed: Callable[[], None] = lambda: None,
        users: Callable[[str], int] = lambda name: 0,
    ) -> None:
        self._path = path
        self._store = store
        self._model = model
        self._base = base
        self._base_name = base_name
        self.changed = changed
        self.users = users
        self._engine: _Engine | None = None
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.states: dict[str, AdapterState] = {}
        self.elsewhere: tuple[str, ...] = ()
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        ours, self.elsewhere = registry.adapters_for(registry.read_adapters(path), self._model)
        self.states = {adapter.name: self._kept(adapter) for adapter in ours}

    def _kept(self, adapter: Adapter) -> AdapterState:
        """What is known of an adapter already, if it is still the same that is wanted."""
        known = self.states.get(adapter.name)
        if known is not None and known.adapter.release == adapter.release:
            return replace(known, adapter=adapter)
        return AdapterState(adapter, serving=known.serving if known else None)

    # An engine's life

    async def prepare(self) -> Capacity:
        """Fetch and check what is desired, before an engine starts: it has to know the largest rank.

        What cannot be had is left out and tried again later: an engine that serves most is worth more
        than none.
        """
        if self._path is not None:
            with _logged("adapters.toml is not read again"):
                self._read(self._path)
        await asyncio.gather(*(self._prepare(name) for name in list(self.states)))
        folders = [state.wanted.folder for state in self.states.values() if state.wanted is not None]
        return Capacity(len(self.states), max(map(lora_rank, folders), default=0))

    async def settle(self, client: EngineClient, kind: identity.EngineKind, max_rank: int) -> None:
        """Load and prove every adapter on an engine that has just started.

        Raises:
            EngineError: the engine does not answer.
        """
        # Before any adapter is loaded: on a CPU the base model's rows get an adapter's weights afterwards.
        base = await client.read_probe(self._base_name)
        self._engine = _Engine(client, kind, base, max_rank)
        for name, state in self.states.items():
            self._set(name, replace(state, serving=None))
        await asyncio.gather(*(self._take_in(name) for name in list(self.states)))
        self.changed()
        for name, state in self.states.items():
            if state.is_retried:
                self._spawn(self._retry(name))

    def lost(self) -> None:
        """The engine is gone, and with it all that it had loaded."""
        self._engine = None
        for task in self._tasks:
            task.cancel()
        for name, state in self.states.items():
            phase: Phase = "refused" if state.phase == "refused" else "waiting"
            self._set(name, replace(state, serving=None, phase=phase))
        self.changed()

    async def aclose(self) -> None:
        """Stop whatever is under way; a download goes on from where it was the next time."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._engine = None

    # Changes

    async def put(self, adapter: Adapter, *, told: Told = lambda phase, progress: None) -> AdapterState:
        """Serve an adapter, or another version of it, and write it to the list once it has proved itself.

        Raises:
            AdapterError: it cannot be had, is not fit, or does not speak; the old version goes on.
            EngineError: the engine failed on the way.
        """
        path = self._writable()
        async with self._changing:
            version = await self._fetch(adapter, told=told)
            told("checking", None)
            await self._check(adapter, version)
            pinned = replace(adapter, release=Release(adapter.release.source, version.sha256))
            if self._engine is not None:
                await self._prove(adapter.name, version, told=told)
            before = self.states.get(adapter.name)
            await in_thread(lambda: registry.edit(path, lambda listed: _with(listed, pinned)))
            state = AdapterState(pinned, wanted=version, serving=before.serving if before else None)
            self.states[adapter.name] = state
            if self._engine is not None:
                self._flip(adapter.name, version)
            return self.states[adapter.name]

    async def roll_back(self, name: str, *, told: Told = lambda phase, progress: None) -> AdapterState:
        """Serve the version before; doing it twice is doing nothing.

        Raises:
            AdapterError: there is none, or as for ``put``.
        """
        adapter = self._desired(name)
        if not adapter.previous:
            raise AdapterError(f"adapter {name!r} has no version before this one: nothing to go back to")
        return await self.put(replace(adapter, release=adapter.previous[0]), told=told)

    async def remove(self, name: str) -> None:
        """Serve it no more; what is being answered is finished.

        Raises:
            AdapterError: it is not listed.
        """
        path = self._writable()
        async with self._changing:
            self._desired(name)
            await in_thread(
                lambda: registry.edit(path, lambda listed: tuple(one for one in listed if one.name != name))
            )
            state = self.states.pop(name)
            self.changed()
            if state.serving is not None:
                self._spawn(self._drain(engine_name(name, state.serving)))

    # Steps

    async def _prepare(self, name: str) -> None:
        state = self.states[name]
        try:
            version = await self._fetch(state.adapter)
            await self._check(state.adapter, version)
        except SiveError as exc:
            is_retried = isinstance(exc, AdapterError) and self.states[name].phase == "fetching"
            self._refuse(name, str(exc), is_retried=is_retried)
        else:
            self._set(name, replace(self.states[name], wanted=version, phase="waiting", detail=""))

    async def _fetch(
        self, adapter: Adapter, *, told: Told = lambda phase, progress: None
    ) -> Version:
        folder = self._path.parent if self._path is not None else Path()
        if found := await in_thread(lambda: self._store.find(adapter.name, adapter.release.sha256)):
            return found

        loop = asyncio.get_running_loop()

        def progressed(progress: Progress) -> None:
            if self._is_closed:
                raise AdapterError("sive is stopping")
            loop.call_soon_threadsafe(self._progressed, adapter.name, progress, told)

        self._enter(adapter.name, "fetching")
        told("fetching", None)
        source = parse(adapter.release.source, folder)
        return await in_thread(
            lambda: self._store.fetch(adapter.name, source, adapter.release.sha256, told=progressed)
        )

    def _progressed(self, name: str, progress: Progress, told: Told) -> None:
        if (state := self.states.get(name)) is not None and state.phase == "fetching":
            self._set(name, replace(state, progress=progress))
        told("fetching", progress)

    async def _check(self, adapter: Adapter, version: Version) -> None:
        self._enter(adapter.name, "checking")
        max_rank = self._engine.max_rank if self._engine is not None else None
        findings = await in_thread(
            lambda: check(version.folder, self._base, max_lora_rank=max_rank, base_model=adapter.base_model)
        )
        for finding in findings:
            if not finding.is_fatal:
                log.warning("adapter %r: %s", adapter.name, finding.message)
        if fatal := [finding.message for finding in findings if finding.is_fatal]:
            raise AdapterError(f"adapter {adapter.name!r} is not fit to be served: {'; '.join(fatal)}")

    async def _take_in(self, name: str) -> None:
        """Load, prove and serve the wanted version, or refuse it."""
        version = self.states[name].wanted
        if version is None:
            return
        try:
            await self._prove(name, version)
        except AdapterError as exc:
            self._refuse(name, str(exc))
        else:
            self._flip(name, version)

    async def _prove(
        self, name: str, version: Version, *, told: Told = lambda phase, progress: None
    ) -> None:
        """Load a version under its own name and compare what it reads; unload it if it is not itself.

        Raises:
            AdapterError: vLLM does not take it, or it does not speak as it should.
            EngineError: the engine is gone.
        """
        engine = self._running()
        theirs = engine_name(name, version)
        async with engine.loads:
            self._enter(name, "loading")
            told("loading", None)
            if theirs not in await engine.client.models():
                try:
                    await engine.client.load(theirs, version.folder)
                except EngineError as exc:
                    raise AdapterError(f"adapter {name!r} cannot be loaded: {exc}") from exc
            self._enter(name, "probing")
            told("probing", None)
            try:
                await self._identify(engine, name, version)
            except AdapterError:
                if not self._serves(name, version):
                    await engine.client.unload(theirs)
                raise

    async def _identify(self, engine: _Engine, name: str, version: Version) -> None:
        read = await engine.client.read_probe(engine_name(name, version))
        stored = await in_thread(lambda: fingerprints(version))
        known = stored.get(str(engine.kind))
        if why := identity.misidentified(name, read, base=engine.base, stored=known):
            raise AdapterError(why)
        if known is None:
            stored[str(engine.kind)] = read
            await in_thread(lambda: store_fingerprints(version, stored))

    def _flip(self, name: str, version: Version) -> None:
        """From now on this version answers under the adapter's name."""
        before = self.states[name].serving
        self._set(
            name, replace(self.states[name], phase="serving", detail="", progress=None, serving=version, wanted=version)
        )
        self.changed()
        log.info("adapter %r: version %s answers", name, version.short)
        if before is not None and before.digest != version.digest:
            self._spawn(self._drain(engine_name(name, before)))

    async def _drain(self, theirs: str) -> None:
        """Unload a version once nobody is being answered by it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self.users(theirs):
                    await asyncio.sleep(DRAIN_POLL_S)
        if self._engine is None or theirs in self.engine_names:
            return  # it went with its engine, or is wanted again
        with _logged(f"{theirs} is not unloaded"):
            await self._engine.client.unload(theirs)

    async def _retry(self, name: str) -> None:
        """Fetch what could not be fetched, until it can or is not wanted any more."""
        for wait_s in (*RETRY_S, *[RETRY_S[-1]] * 1000):
            await asyncio.sleep(wait_s)
            async with self._changing:
                if name not in self.states or not self.states[name].is_retried or self._engine is None:
                    return
                await self._prepare(name)
                await self._take_in(name)

    # Small things

    @property
    def engine_names(self) -> Collection[str]:
        """What the engine calls the versions that answer."""
        return {engine_name(name, state.serving) for name, state in self.states.items() if state.serving}

    def _serves(self, name: str, version: Version) -> bool:
        serving = self.states[name].serving if name in self.states else None
        return serving is not None and serving.digest == version.digest

    def _desired(self, name: str) -> Adapter:
        if name not in self.states:
            known = ", ".join(self.states) or "none"
            raise AdapterError(f"there is no adapter {name!r} for {self._model}; listed are: {known}")
        return self.states[name].adapter

    def _writable(self) -> Path:
        if self._path is None:
            raise AdapterError("this sive reads no adapters.toml: set adapters under [engine]")
        return self._path

    def _running(self) -> _Engine:
        if self._engine is None:
            raise EngineError("the engine is not ready")
        return self._engine

    def _enter(self, name: str, phase: Phase) -> None:
        """Show a phase, unless an older version goes on answering meanwhile."""
        state = self.states.get(name)
        if state is not None and state.serving is None:
            self._set(name, replace(state, phase=phase, progress=None))

    def _refuse(self, name: str, why: str, *, is_retried: bool = False) -> None:
        log.error("%s", why)
        self._set(name, replace(self.states[name], phase="refused", detail=why, is_retried=is_retried))

    def _set(self, name: str, state: AdapterState) -> None:
        self.states[name] = state

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # type: ignore[arg-type]
        task.add_done_callback(self._tasks.discard)  # type: ignore[arg-type]
