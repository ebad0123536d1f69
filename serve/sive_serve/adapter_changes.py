"""Changes of what an engine serves while it serves: another version, one more, one less."""

from collections.abc import Callable
from dataclasses import replace

from sive.errors import AdapterError, SiveError
from sive_adapters import registry
from sive_adapters.entries import MAX_PREVIOUS
from sive_adapters.registry import Adapter, Release
from sive_adapters.store import Progress, Version

from sive_serve.adapter_state import AdapterState, Phase
from sive_serve.adapter_versions import AdapterVersions, Told
from sive_serve.daemon_thread import in_thread
from sive_serve.engine_loras import EngineLoras
from sive_serve.loaded_adapters import LoadedAdapters
from sive_serve.wanted_adapters import WantedAdapters

Wish = Callable[[Adapter | None], Adapter]
"""Makes what is wanted from what is listed.

Raises:
    AdapterError: it cannot be wanted.
"""


def nobody(phase: Phase, progress: Progress | None) -> None:
    """Tell nobody."""


class AdapterChanges:
    """Fetches, checks, loads and proves beside what is served; then writes the list and lets it answer."""

    def __init__(self, wanted: WantedAdapters, versions: AdapterVersions, loaded: LoadedAdapters) -> None:
        self._wanted = wanted
        self._versions = versions
        self._loaded = loaded

    async def put(
        self, name: str, wish: Wish, *, told: Told = nobody, is_automatic: bool = False
    ) -> AdapterState:
        """Serve an adapter, or another version of it, and list it once it has proved itself.

        Unless ``is_automatic`` somebody asks for it: what came twice with a wrong hash is fetched once more.

        Raises:
            AdapterError: it cannot be had, is not fit, does not speak as itself, or was changed meanwhile;
                what was served goes on.
            EngineError: the engine is not ready, or failed on the way.
        """
        before = self._wanted.listed(name)
        adapter = wish(before)
        self._loaded.running()
        async with self._versions.fetched(adapter, told, anew=not is_automatic) as version:
            told("checking", None)
            await self._versions.check(adapter, version, max_rank=self._loaded.max_rank)
            return await self._exchange(before, adapter, version, told)

    async def _exchange(
        self, before: Adapter | None, adapter: Adapter, version: Version, told: Told
    ) -> AdapterState:
        """Load and prove a version that is on disk, list it, and let it answer."""
        name = adapter.name
        async with self._loaded.changing:
            if self._wanted.listed(name) != before:
                raise AdapterError(f"adapter {name!r} was changed by somebody else meanwhile: try again")
            engine = self._loaded.running()
            self._check_room(name, engine)
            told("loading", None)
            await engine.load(name, version)
            told("probing", None)
            await self._loaded.prove(engine, name, version)
            release = Release(adapter.release.source, version.sha256)
            try:
                await self._list(replace(adapter, release=release), version)
            except SiveError:  # what is not listed must not stay in the engine's memory
                self._loaded.drain(name, version)
                raise
            if self._loaded.engine is engine:  # another life of it has yet to load what is listed now
                self._loaded.flip(name, version)
            return self._wanted.states[name]  # within the lock: who waits for it may remove the adapter

    async def roll_back(self, name: str, *, told: Told = nobody) -> AdapterState:
        """Serve the version before; once more, and it is the one after it again.

        Raises:
            AdapterError: there is none, or as for ``put``.
            EngineError: as for ``put``.
        """

        def previous(listed: Adapter | None) -> Adapter:
            adapter = listed or self._wanted.wanted(name)
            if not adapter.previous:
                raise AdapterError(f"adapter {name!r} has no version before this one to go back to")
            return replace(adapter, release=adapter.previous[0])

        return await self.put(name, previous, told=told)

    async def remove(self, name: str) -> None:
        """Serve it no more, and take it off the list; what is being answered is finished.

        Raises:
            AdapterError: it is not listed, or the list cannot be written.
        """
        async with self._loaded.changing:
            self._wanted.wanted(name)
            await in_thread(lambda: registry.edit(self._wanted.path, lambda listed: _without(listed, name)))
            state = self._wanted.states.pop(name, None)
            self._wanted.announce()
            if state is not None and state.serving is not None:
                self._loaded.drain(name, state.serving)

    def _check_room(self, name: str, engine: EngineLoras) -> None:
        """Look whether the engine keeps one more in memory, and one beside it while it is changed.

        Of more than it keeps, each would be read from disk again when it is asked for, within a step of the
        engine that every answer waits for.

        Raises:
            AdapterError: it does not.
        """
        count = len(self._wanted.states)
        if name not in self._wanted.states and count + 1 >= engine.max_count:
            raise AdapterError(
                f"the engine was started to keep {engine.max_count} adapters in memory, {count} are listed "
                "and one place is for changes: restart sive, which makes room for more, or set max_cpu_loras "
                "under [engine]"
            )

    async def _list(self, adapter: Adapter, version: Version) -> None:
        """Write an adapter to the list, the version it had before to its ``previous``."""
        before = self._wanted.states.get(adapter.name)
        had = None if before is None else before.serving or before.wanted
        listed = await in_thread(
            lambda: registry.edit(self._wanted.path, lambda listed: _with(listed, adapter, had=had))
        )
        written = next(one for one in listed if one.name == adapter.name)
        states = self._wanted.states  # the engine may have died meanwhile, and the list have been read anew
        now = states.get(adapter.name)
        states[adapter.name] = AdapterState(
            written, wanted=version, serving=None if now is None else now.serving
        )


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
