"""Versions of wanted adapters on this machine: fetched or found, and checked before anything loads them."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sive.errors import AdapterError, SiveError
from sive_adapters.base_model import read_base_model
from sive_adapters.check import check, lora_rank
from sive_adapters.disk import plain_errors
from sive_adapters.lease import Lease
from sive_adapters.registry import Adapter
from sive_adapters.sources import parse
from sive_adapters.store import Progress, Store, Version

from sive_serve.adapter_state import AdapterState, Phase
from sive_serve.daemon_thread import in_thread
from sive_serve.wanted_adapters import WantedAdapters

FETCHED_AT_ONCE, CHECKED_AT_ONCE = 16, 4
"""Sources that crawl should not keep others from being fetched; a check reads the weights into memory."""

HOLD_TRIES = 3

log = logging.getLogger(__name__)

Told = Callable[[Phase, Progress | None], None]
"""What a change is doing, and while it fetches how far that is."""


Find = Callable[[], Awaitable[Version]]

OWN_FAULT = "an error in sive itself; its log says more"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine is started for: how many adapters, and their largest rank."""

    count: int = 0
    max_rank: int = 0


class AdapterVersions:
    """Brings what is wanted into a store. ``weights``: the folder of the base model, where it is known."""

    def __init__(self, wanted: WantedAdapters, store: Store) -> None:
        self.weights: Path | None = None
        self._wanted = wanted
        self._store = store
        self._lease = Lease(store.root)
        self._in_hand: Counter[Path] = Counter()
        self._fetching = asyncio.Semaphore(FETCHED_AT_ONCE)
        self._checking = asyncio.Semaphore(CHECKED_AT_ONCE)
        self._is_closed = False

    def close(self) -> None:
        """Stop downloads, which go on from where they were the next time, and need no version any more."""
        self._is_closed = True
        self._lease.release()

    async def renew(self) -> None:
        """Say to others who share the store that the versions of this engine are still needed.

        Raises:
            AdapterError: the store cannot be written.
        """
        await in_thread(self._lease.renew)

    async def prepare(self, name: str, *, max_rank: int | None) -> None:
        """Have a version of an adapter on disk, and know that it may be loaded.

        Otherwise it is refused, unless a version answers meanwhile: that goes on.
        """
        adapter = self._wanted.states[name].adapter
        try:
            async with self._held(adapter, partial(self._fetch_or_find, adapter)) as version:
                self._wanted.enter(adapter, "checking")
                await self._check_or_reject(adapter, version, max_rank=max_rank)
        except SiveError as exc:
            self._wanted.put_off(adapter, str(exc), is_retried=True)
        except Exception:  # the outermost frame of a task: without it nobody would be told
            log.exception("adapter %r cannot be prepared", name)
            self._wanted.put_off(adapter, OWN_FAULT)

    async def _check_or_reject(self, adapter: Adapter, version: Version, *, max_rank: int | None) -> None:
        try:
            await self.check(adapter, version, max_rank=max_rank)
        except SiveError as exc:
            self._wanted.reject(adapter, version, str(exc))
            return
        state = self._wanted.states.get(adapter.name)
        phase: Phase = "waiting" if state is None or state.serving is None else "serving"
        self._wanted.update(adapter, wanted=version, phase=phase, detail="", progress=None, is_retried=False)

    @contextlib.asynccontextmanager
    async def fetched(self, adapter: Adapter, told: Told, *, anew: bool = False) -> AsyncIterator[Version]:
        """Have the version that is wanted: pinned, or what the source holds; ``anew`` as in a store.

        Nobody removes it inside the block, and once it is listed and loaded as long as the engine lives.

        Raises:
            AdapterError: it cannot be had.
        """
        async with self._held(adapter, lambda: self._fetch(adapter, told, anew=anew)) as version:
            yield version

    @contextlib.asynccontextmanager
    async def _held(self, adapter: Adapter, find: Find) -> AsyncIterator[Version]:
        """Hold what is found; who shares the store may have removed it before that, then it is found anew."""
        for _ in range(HOLD_TRIES):
            version = await find()
            self._in_hand[version.folder] += 1
            try:
                if await in_thread(partial(self._lease.hold, version.folder)):
                    yield version
                    return
            finally:
                self._in_hand[version.folder] -= 1
        raise AdapterError(f"adapter {adapter.name!r}: {version.folder} is removed again and again")

    async def _fetch(self, adapter: Adapter, told: Told, *, anew: bool = False) -> Version:
        release, loop = adapter.release, asyncio.get_running_loop()
        if found := await in_thread(lambda: self._store.find(adapter.name, release.sha256)):
            return found

        def progressed(progress: Progress) -> None:
            if self._is_closed:
                raise AdapterError("sive is stopping")
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(told, "fetching", progress)

        told("fetching", None)
        source = parse(release.source, self._wanted.path.parent)
        async with self._fetching:
            return await in_thread(
                lambda: self._store.fetch(adapter.name, source, release.sha256, told=progressed, anew=anew)
            )

    async def stand_in(self, name: str) -> None:
        """Want what a source held before, while it takes its time to give what it holds now.

        Of a pinned adapter nothing else is served, however long that takes.
        """
        adapter = self._wanted.states[name].adapter
        if adapter.release.sha256:
            return
        source = parse(adapter.release.source, self._wanted.path.parent)
        for found in await in_thread(lambda: list(self._store.fetched_from(name, source))):
            try:
                if not await in_thread(partial(self._lease.hold, found.folder)):
                    continue
                await self.check(adapter, found, max_rank=None)
            except AdapterError as exc:
                log.warning("%s; an older one is looked for", exc)
                continue
            state = self._wanted.states.get(name)
            if state is not None and state.wanted is None:
                log.warning(
                    "adapter %r: version %s stands in until its source has answered", name, found.short
                )
                self._wanted.update(adapter, wanted=found)
            return

    async def check(self, adapter: Adapter, version: Version, *, max_rank: int | None) -> None:
        """Look at a version before anything loads it; ``max_rank``: what a running engine takes.

        Raises:
            AdapterError: it must not be loaded.
        """
        base = self._wanted.model if self.weights is None else str(self.weights)
        async with self._checking:
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

    async def capacity(self) -> Capacity:
        """Return what an engine has to be started for: all that is listed, and what a rollback may want."""
        states = list(self._wanted.states.values())
        return Capacity(len(states), await in_thread(lambda: self._largest_rank(states)))

    async def collect(self) -> None:
        """Remove versions that nobody goes back to, and need those alone that somebody may.

        An engine needs the folders that it has loaded: only when one has just started. Of adapters that
        others may list nothing is removed, and nothing that the engines of others have loaded.

        Raises:
            AdapterError: they cannot be removed.
        """
        kept = {
            name: (state.wanted, state.adapter.release, *state.adapter.previous)
            for name, state in self._wanted.states.items()
        }

        def collect() -> None:
            with plain_errors(self._store.root, "old versions"), self._lease.locked():
                needed, stale = {folder for folder, count in self._in_hand.items() if count}, set[Path]()
                for name, wanted in kept.items():
                    digests = {one.digest for one in wanted if one is not None}
                    for version in self._store.versions(name):
                        (needed if version.digest in digests else stale).add(version.folder)
                self._lease.only(needed)
                self._store.collect(stale - needed - self._lease.others())

        await in_thread(collect)

    async def _fetch_or_find(self, adapter: Adapter) -> Version:
        """Return a version to start with: what is not pinned may be what its source held the last time.

        Raises:
            AdapterError: it cannot be had, and never was.
        """
        state = self._wanted.states[adapter.name]
        known = None if state.is_retried else state.wanted
        if known is not None and await in_thread(known.folder.is_dir):
            return known  # a restart is no wish for another voice
        try:
            return await self._fetch(adapter, partial(self._progressed, adapter))
        except AdapterError as exc:
            if (found := await self._latest(adapter)) is None:
                raise
            log.warning("adapter %r: %s; what was fetched before is served", adapter.name, exc)
            return found

    async def _latest(self, adapter: Adapter) -> Version | None:
        """Return what its source held the last time; None where nothing is here, or another is pinned."""
        if adapter.release.sha256:
            return None
        source = parse(adapter.release.source, self._wanted.path.parent)
        return await in_thread(lambda: self._store.latest(adapter.name, source))

    def _progressed(self, adapter: Adapter, phase: Phase, progress: Progress | None) -> None:
        self._wanted.update(adapter, phase=phase, progress=progress)

    def _largest_rank(self, states: list[AdapterState]) -> int:
        ranks = [0]
        for state in states:
            before = (self._store.find(state.adapter.name, one.sha256) for one in state.adapter.previous)
            here = [version.folder for version in (state.wanted, *before) if version is not None]
            # Of one that is on its way the configuration is there before the weights.
            coming = () if state.wanted is not None else self._store.ranked(state.adapter.name)
            for folder in (*here, *coming):
                with contextlib.suppress(AdapterError):
                    ranks.append(lora_rank(folder))
        return max(ranks)
