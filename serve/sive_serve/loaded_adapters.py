"""The adapters on a running engine: loaded, proved, answering, and unloaded when nobody needs them."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator

from sive.errors import AdapterError, EngineError, SiveError
from sive_adapters.store import Version

from sive_serve.adapter_state import engine_name
from sive_serve.background import Background
from sive_serve.engine_loras import EngineLoras
from sive_serve.wanted_adapters import WantedAdapters

DRAIN_S, DRAIN_POLL_S = 600.0, 0.2
"""How long an old version is kept for the answers that it is giving; vLLM finishes them even without it."""

log = logging.getLogger(__name__)


class LoadedAdapters:
    """What one life of the engine after another has of the wanted adapters.

    ``changing``: whoever loads, proves, lists or unloads holds it, and looks again at what is wanted, and at
    which life of the engine it is, after it has waited. ``users`` says how many requests are being answered
    under an engine's name.
    """

    def __init__(self, wanted: WantedAdapters) -> None:
        self.users: Callable[[str], int] = lambda name: 0
        self.engine: EngineLoras | None = None
        self.changing = asyncio.Lock()
        self.background = Background("the engine's adapters")
        self._wanted = wanted
        self._reloading: set[str] = set()

    def running(self) -> EngineLoras:
        """Return this life of the engine.

        Raises:
            EngineError: there is none.
        """
        if self.engine is None:
            raise EngineError("the engine is not ready: try again when it is")
        return self.engine

    @property
    def max_rank(self) -> int | None:
        """The largest rank that the running engine takes."""
        return None if self.engine is None else self.engine.max_rank

    async def settle(self, engine: EngineLoras, proving: Callable[[], None]) -> None:
        """Load every wanted version into an engine that has just started, and prove it. Holding the lock.

        ``proving`` is called when all are loaded.

        Raises:
            EngineError: the engine does not answer.
        """
        self.engine = engine
        states = self._wanted.states
        wanted = {name: state.wanted for name, state in states.items() if state.wanted is not None}
        await _together(self._load(name, version) for name, version in wanted.items())
        proving()
        await _together(self._prove(name, version) for name, version in wanted.items())

    def lost(self) -> None:
        """The engine is gone, and with it all that it had loaded."""
        self.engine = None
        self.background.cancel()
        self._reloading.clear()
        self._wanted.lost()

    def reload(self, theirs: str) -> None:
        """Load and prove an adapter again that the engine says it does not know, by the engine's name."""
        for name, state in self._wanted.states.items():
            if state.engine_name == theirs and name not in self._reloading:
                self._reloading.add(name)
                self.background.spawn(self.bring(name))

    async def bring(self, name: str) -> None:
        """Load and prove the wanted version of an adapter, if an engine runs."""
        async with self.changing:
            self._reloading.discard(name)
            state = self._wanted.states.get(name)
            if state is None or state.wanted is None or self.engine is None:
                return
            with logged(f"adapter {name!r} is not loaded again"):
                await self._load(name, state.wanted)
                await self._prove(name, state.wanted)

    async def prove(self, engine: EngineLoras, name: str, version: Version) -> None:
        """Prove a loaded version, or unload it. Holding the lock.

        Raises:
            AdapterError: it does not speak as itself.
            EngineError: the engine does not answer.
        """
        try:
            await engine.prove(name, version)
        except AdapterError:
            if not self._is_serving(name, version):
                await engine.unload(name, version)
            raise

    def flip(self, name: str, version: Version) -> None:
        """From now on this version answers under the adapter's name; the one before is drained."""
        before = self._wanted.serve(name, version)
        if before is not None and before.digest != version.digest:
            self.drain(name, before)

    def drain(self, name: str, version: Version) -> None:
        """Unload a version once nobody is being answered by it, unless it is wanted again."""
        self.background.spawn(self._drain(name, version))

    async def _load(self, name: str, version: Version) -> None:
        """Load a version, or refuse it; an engine that is gone is not its fault."""
        if (adapter := self._wanted.listed(name)) is None:
            return
        self._wanted.enter(adapter, "loading")
        try:
            await self.running().load(name, version)
        except AdapterError as exc:
            self._wanted.reject(adapter, version, str(exc))

    async def _prove(self, name: str, version: Version) -> None:
        """Serve a loaded version, or refuse it."""
        state = self._wanted.states.get(name)
        if state is None or state.wanted != version:
            return  # it was refused, or is not wanted any more
        self._wanted.enter(state.adapter, "probing")
        try:
            await self.prove(self.running(), name, version)
        except AdapterError as exc:
            self._wanted.reject(state.adapter, version, str(exc))
            return
        now = self._wanted.states.get(name)
        if now is not None and now.wanted == version and self.engine is not None:
            self.flip(name, version)

    def _is_serving(self, name: str, version: Version) -> bool:
        """Does it answer now, wherever it was fetched from?"""
        state = self._wanted.states.get(name)
        return state is not None and state.engine_name == engine_name(name, version)

    async def _drain(self, name: str, version: Version) -> None:
        theirs, clock = engine_name(name, version), asyncio.get_running_loop().time
        until = clock() + DRAIN_S
        while True:
            while self.users(theirs) and clock() < until:  # noqa: ASYNC110 - rarely, instead of told at each end
                await asyncio.sleep(DRAIN_POLL_S)
            async with self.changing:  # a rollback may be about to serve it
                if self.engine is None or self._is_serving(name, version):
                    return
                if self.users(theirs) and clock() < until:
                    continue  # it was served once more while the lock was waited for, and is being spoken as
                with logged(f"{theirs} is not unloaded"):
                    await self.engine.unload(name, version)
                return


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
def logged(what: str) -> Iterator[None]:
    """Log an error of ours and go on."""
    try:
        yield
    except SiveError as exc:
        log.warning("%s: %s", what, exc)
