"""The adapters of one running engine, from its start to its death: loaded, and proved to be themselves."""

import asyncio
from dataclasses import dataclass, field

from sive.errors import AdapterError, EngineError
from sive_adapters import identity
from sive_adapters.store import Version

from sive_serve.adapter_state import engine_name
from sive_serve.daemon_thread import in_thread
from sive_serve.engine_client import EngineClient

AT_ONCE = 4


@dataclass(slots=True)
class EngineLoras:
    """One life of an engine. ``base``: how its base model reads the probe; ``max_rank``: what it takes."""

    client: EngineClient
    kind: identity.EngineKind
    base: identity.Fingerprint
    max_rank: int
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def load(self, name: str, version: Version) -> None:
        """Load a version under a name of its own; one that is there already is left alone.

        Raises:
            AdapterError: vLLM does not take it.
            EngineError: the engine does not answer.
        """
        theirs = engine_name(name, version)
        async with self._gate:
            if theirs in await self.client.models():
                return
            try:
                await self.client.load(theirs, version.folder)
            except EngineError as exc:
                await self.client.models()  # raises when it is the engine that is gone
                raise AdapterError(f"adapter {name!r} cannot be loaded: {exc}") from exc

    async def prove(self, name: str, version: Version) -> None:
        """Compare what a loaded version makes of the probe with its base, and with what it made of it before.

        Raises:
            AdapterError: it does not speak as itself.
            EngineError: the engine does not answer.
        """
        async with self._gate:
            try:
                read = await self.client.read_probe(engine_name(name, version))
            except EngineError as exc:
                await self.client.models()  # as above
                raise AdapterError(f"adapter {name!r} cannot be probed: {exc}") from exc
        stored = await in_thread(lambda: identity.fingerprints(version.folder))
        known = stored.get(str(self.kind))
        if why := identity.misidentified(name, read, base=self.base, stored=known):
            raise AdapterError(why)
        if known is None:
            stored[str(self.kind)] = read
            await in_thread(lambda: identity.store_fingerprints(version.folder, stored))

    async def unload(self, name: str, version: Version) -> None:
        """Forget a version; what it is saying is finished.

        Raises:
            EngineError: the engine does not answer.
        """
        await self.client.unload(engine_name(name, version))
