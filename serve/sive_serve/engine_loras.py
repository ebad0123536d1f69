"""The adapters of one running engine, from its start to its death: loaded, and proved to be themselves."""

import asyncio
from dataclasses import dataclass, field

from sive.errors import AdapterError, EngineError
from sive_adapters import identity
from sive_adapters.check import lora_rank
from sive_adapters.store import Version
from sive_adapters.tolerance import tolerance

from sive_serve.adapter_state import engine_name
from sive_serve.daemon_thread import in_thread
from sive_serve.engine_client import EngineClient

AT_ONCE = 4


@dataclass(slots=True)
class EngineLoras:
    """One life of an engine, whose base model is called ``base_name``.

    ``max_rank``: the largest that it takes. ``max_count``: how many adapters it keeps in memory.
    """

    client: EngineClient
    kind: identity.EngineKind
    base_name: str
    max_rank: int
    max_count: int
    _base: identity.Fingerprint | None = None
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def load(self, name: str, version: Version) -> None:
        """Load a version under a name of its own; one that is there already is left alone.

        Raises:
            AdapterError: vLLM does not take it.
            EngineError: the engine does not answer.
        """
        theirs = engine_name(name, version)
        rank = await in_thread(lambda: lora_rank(version.folder))
        if rank > self.max_rank:
            raise AdapterError(
                f"adapter {name!r} has rank {rank}, the engine was started for {self.max_rank}: restart "
                "sive, or set max_lora_rank under [engine]"
            )
        await self._read_base()
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
        allows = tolerance(self.kind.dtype)
        base = await self._read_base()
        if why := identity.misidentified(name, read, base=base, stored=known, allows=allows):
            file = identity.file_of(version.folder)
            hint = f"; to accept it as it reads now remove {file}" if known else ""
            raise AdapterError(why + hint)
        if known is None:
            stored[str(self.kind)] = read
            await in_thread(lambda: identity.store_fingerprints(version.folder, stored))

    async def _read_base(self) -> identity.Fingerprint:
        """Return how the base model reads the probe: once, and before any adapter is loaded.

        Afterwards, on a CPU, its rows get the adapter in the last slot (vllm#48421).
        """
        async with self._reading:
            if self._base is None:
                try:
                    self._base = await self.client.read_probe(self.base_name)
                except EngineError as exc:
                    await self.client.models()  # as above
                    raise AdapterError(f"the base model cannot be probed: {exc}") from exc
            return self._base

    async def unload(self, name: str, version: Version) -> None:
        """Forget a version; what it is saying is finished.

        Raises:
            EngineError: the engine does not answer.
        """
        await self.client.unload(engine_name(name, version))
