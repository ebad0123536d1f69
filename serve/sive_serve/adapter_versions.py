"""Versions of wanted adapters on this machine: fetched or found, and checked before anything loads them."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sive.errors import AdapterError, SiveError
from sive_adapters.base_model import read_base_model
from sive_adapters.check import check, lora_rank
from sive_adapters.registry import Adapter
from sive_adapters.sources import parse
from sive_adapters.store import Progress, Store, Version

from sive_serve.adapter_state import AdapterState, Phase
from sive_serve.daemon_thread import in_thread
from sive_serve.wanted_adapters import WantedAdapters

PREPARE_S = 600.0
"""How long an engine's start waits for an adapter; one that takes longer comes when it is there."""

PREPARED_AT_ONCE = 4

log = logging.getLogger(__name__)

Told = Callable[[Phase, Progress | None], None]
"""What a change is doing, and while it fetches how far that is."""


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
        self._at_once = asyncio.Semaphore(PREPARED_AT_ONCE)
        self._is_closed = False

    def close(self) -> None:
        """Stop downloads; they go on from where they were the next time."""
        self._is_closed = True

    async def prepare(self, name: str, *, max_rank: int | None) -> None:
        """Have a version of an adapter on disk, and know that it may be loaded; refuse it otherwise."""
        adapter = self._wanted.states[name].adapter
        try:
            async with self._at_once, asyncio.timeout(PREPARE_S):
                version = await self._fetch_or_find(adapter)
        except TimeoutError:
            why = f"adapter {name!r} is not here after {PREPARE_S:.0f} s"
            self._wanted.refuse(adapter, why, is_retried=True)
            return
        except SiveError as exc:
            self._wanted.refuse(adapter, str(exc), is_retried=True)
            return
        self._wanted.enter(adapter, "checking")
        try:
            async with self._at_once:
                await self.check(adapter, version, max_rank=max_rank)
        except SiveError as exc:
            self._wanted.refuse(adapter, str(exc))
        else:
            self._wanted.update(
                adapter, wanted=version, phase="waiting", detail="", progress=None, is_retried=False
            )

    async def fetch(self, adapter: Adapter, told: Told) -> Version:
        """Return the version that is wanted: the pinned one, or what the source holds now.

        Raises:
            AdapterError: it cannot be had.
        """
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
        return await in_thread(
            lambda: self._store.fetch(adapter.name, source, release.sha256, told=progressed)
        )

    async def check(self, adapter: Adapter, version: Version, *, max_rank: int | None) -> None:
        """Look at a version before anything loads it; ``max_rank``: what a running engine takes.

        Raises:
            AdapterError: it must not be loaded.
        """
        base = self._wanted.model if self.weights is None else str(self.weights)
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
        """Remove versions that nobody goes back to.

        An engine needs the folders that it has loaded: only when one has just started. Of adapters that
        others may list nothing is removed.

        Raises:
            AdapterError: they cannot be removed.
        """
        kept = {
            name: (state.wanted, state.adapter.release, *state.adapter.previous)
            for name, state in self._wanted.states.items()
        }

        def collect() -> None:
            stale: set[Path] = set()
            for name, wanted in kept.items():
                digests = {one.digest for one in wanted if one is not None}
                stale |= {
                    version.folder for version in self._store.versions(name) if version.digest not in digests
                }
            self._store.collect(set(self._store.root.glob("[!.]*/*")) - stale)

        await in_thread(collect)

    async def _fetch_or_find(self, adapter: Adapter) -> Version:
        """Return a version to start with: what is not pinned may be what its source held the last time.

        Raises:
            AdapterError: it cannot be had, and never was.
        """
        known = self._wanted.states[adapter.name].wanted
        if known is not None and await in_thread(known.folder.is_dir):
            return known  # a restart is no wish for another voice
        try:
            return await self.fetch(adapter, partial(self._progressed, adapter))
        except AdapterError as exc:
            if adapter.release.sha256:
                raise
            source = parse(adapter.release.source, self._wanted.path.parent)
            found = await in_thread(lambda: self._store.latest(adapter.name, source))
            if found is None:
                raise
            log.warning("adapter %r: %s; what was fetched before is served", adapter.name, exc)
            return found

    def _progressed(self, adapter: Adapter, phase: Phase, progress: Progress | None) -> None:
        self._wanted.update(adapter, phase=phase, progress=progress)

    def _largest_rank(self, states: list[AdapterState]) -> int:
        ranks = [0]
        for state in states:
            before = (self._store.find(state.adapter.name, one.sha256) for one in state.adapter.previous)
            for version in (state.wanted, *before):
                with contextlib.suppress(AdapterError):
                    ranks.append(0 if version is None else lora_rank(version.folder))
        return max(ranks)
