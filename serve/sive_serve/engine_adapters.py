"""The adapters of an engine, through all its lives: fetched, checked, loaded, proved, and changed.

An adapter is loaded under a name of its own per version, ``spinoza@9f3c21ab77e0``, from a folder that never
changes; what callers ask for as ``spinoza`` points at one of them. A new version is loaded and proved beside
the old one before the pointer moves, and the old one is unloaded when nobody is being answered by it
(docs/adr/0008-an-adapter-is-its-content.md).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sive_adapters.lease import RENEW_S
from sive_adapters.registry import Release
from sive_adapters.store import Progress, Store

from sive_serve.adapter_changes import AdapterChanges
from sive_serve.adapter_state import AdapterState
from sive_serve.adapter_versions import AdapterVersions, Capacity
from sive_serve.engine_loras import EngineLoras
from sive_serve.loaded_adapters import LoadedAdapters, logged
from sive_serve.wanted_adapters import WantedAdapters

RETRY_S = (15.0, 30.0, 60.0, 120.0, 300.0)
"""Waits between attempts to fetch what could not be fetched; the last one is repeated."""

START_S = 30.0
"""How long an engine's start waits for adapters; one that takes longer is served when it is there."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A release on its way to the disk."""

    release: Release
    task: asyncio.Task[None]


class EngineAdapters:
    """The desired adapters of one base model: ``wanted``, on this machine, ``loaded`` and changed.

    ``path``: the list. ``model``: the base model, a hub id or an absolute folder.

    Fetching and checking may go on beside anything; whoever loads, proves, lists or unloads holds one lock.

    Raises:
        AdapterError: the list cannot be read.
    """

    def __init__(self, path: Path, store: Store, *, model: str) -> None:
        self.wanted = WantedAdapters(path, model=model)
        self.loaded = LoadedAdapters(self.wanted)
        self._versions = AdapterVersions(self.wanted, store)
        self.changes = AdapterChanges(self.wanted, self._versions, self.loaded)
        self._attempts: dict[str, _Attempt] = {}
        self._renewing: asyncio.Task[None] | None = None

    @property
    def states(self) -> dict[str, AdapterState]:
        """What became of each, by name."""
        return self.wanted.states

    def fetching(self) -> list[Progress]:
        """How far each adapter is that is being fetched."""
        return self.wanted.fetching()

    async def prepare(self, weights: Path | None = None) -> Capacity:
        """Fetch and check what is wanted, before an engine starts: it has to know the largest rank.

        ``weights``: the folder of the base model, where it is known. What cannot be had, or not soon, is left
        out and served when it is there: an engine that serves most is worth more than none.
        """
        self._versions.weights = weights
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        with logged("the list of adapters is not read again"):
            self.wanted.read()
        if attempts := [self._attempt(name) for name in self.states]:
            await asyncio.wait(attempts, timeout=START_S)
        for name in [name for name in self.states if self._is_coming(name)]:
            await self._versions.stand_in(name)
        return await self._versions.capacity()

    async def settle(self, engine: EngineLoras, proving: Callable[[], None] = lambda: None) -> None:
        """Load every wanted version into an engine that has just started, prove it, and serve what is itself.

        ``proving`` is called when all are loaded.

        Raises:
            EngineError: the engine does not answer.
        """
        async with self.loaded.changing:
            await self.loaded.settle(engine, proving)
            with logged("old versions are not removed"):
                await self._versions.collect()
        for name, state in self.states.items():
            if (
                state.is_retried
                or self._is_coming(name)
                or (state.wanted is not None and state.serving is None)
            ):
                self.loaded.background.spawn(self._bring_later(name))

    def lost(self) -> None:
        """The engine is gone, and with it all that it had loaded."""
        self.loaded.lost()

    async def aclose(self) -> None:
        """Stop what is under way; a download goes on from where it was the next time."""
        self._versions.close()
        await self.loaded.background.aclose()
        left = [
            *(one.task for one in self._attempts.values()),
            *([self._renewing] if self._renewing is not None else []),
        ]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _attempt(self, name: str) -> asyncio.Task[None]:
        """Have a version on disk that may be loaded; an attempt under way outlives the engine's death."""
        if not self._is_coming(name):
            work = self._versions.prepare(name, max_rank=self.loaded.max_rank)
            task = asyncio.create_task(work, name=f"adapter {name}")
            self._attempts[name] = _Attempt(self.states[name].adapter.release, task)
        return self._attempts[name].task

    def _is_coming(self, name: str) -> bool:
        """Is an attempt to have it under way?"""
        attempt = self._attempts.get(name)
        listed = self.wanted.listed(name)
        if attempt is None or listed is None or attempt.task.done():
            return False
        return attempt.release == listed.release

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with logged("others may remove what this engine needs"):
                await self._versions.renew()

    async def _bring_later(self, name: str) -> None:
        """Serve what was not there at the start as soon as it is."""
        if self._is_coming(name):
            await asyncio.wait([self._attempts[name].task])
        if name in self.states and self.states[name].is_retried:
            await self._retry(name)
        elif name in self.states:
            await self.loaded.bring(name)

    async def _retry(self, name: str) -> None:
        """Fetch what could not be fetched until it can be, or is not wanted any more."""
        attempt = 0
        while True:
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1
            if name not in self.states or not self.states[name].is_retried:
                return
            await asyncio.wait([self._attempt(name)])
            state = self.states.get(name)
            if state is not None and state.wanted is not None and not state.is_retried:
                await self.loaded.bring(name)
                return
