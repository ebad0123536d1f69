"""One object onto the disk over obstore: in pieces at once, resumed, hashed while it is written."""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sive.errors import AdapterError

from sive_adapters import object_store, part
from sive_adapters.hashing import Follower
from sive_adapters.meter import Meter
from sive_adapters.object_store import (
    ChangedError,
    Patience,
    RangesRefusedError,
    TransientError,
    plain_errors,
)
from sive_adapters.part import CONNECTIONS, DONE, MIB, PIECE_BYTES, Part, Range, Stat
from sive_adapters.progress import Told
from sive_adapters.sources import Source

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNKS = 8
"""In so many a piece is written: what a lost connection brought of a chunk is lost with it."""
LARGEST_CHUNK_BYTES = PIECE_BYTES // CHUNKS
CUT_CHUNK_BYTES = 64 * 2**10
"""Of a connection that was cut before: it may not last for more."""
SYNC_BYTES = 64 * MIB
BACKLOG_BYTES, BACKLOG_POLL_S = 64 * MIB, 0.005
"""No piece is begun while more than that waits to be hashed: where cores are short, what comes early takes
from the hashing what is then missing at the end, when nothing comes any more."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Bucket:
    """A folder in an object store or on the web. Its methods block; their work is in a loop of their own."""

    def __init__(self, source: Source, patience: Patience) -> None:
        self.source = source
        self._patience = patience
        self._store = object_store.connect(source, patience)

    def look(self, names: Iterable[str]) -> dict[str, Stat]:
        """Look at files; those that are not there are left out.

        Raises:
            AdapterError: the store cannot be reached or refuses.
        """

        async def all_of_them() -> dict[str, Stat]:
            asked = list(names)
            found = await asyncio.gather(*(self._again(partial(self._head, name), name) for name in asked))
            return {name: stat for name, stat in zip(asked, found, strict=True) if stat is not None}

        return asyncio.run(all_of_them())

    async def _head(self, name: str) -> Stat | None:
        import obstore

        try:
            with plain_errors(self.source, name):
                return object_store.stat_of(await obstore.head_async(self._store, self._key(name)))
        except object_store.MissingFileError:
            return None

    def list(self) -> dict[str, Stat]:
        """Return the files of the folder itself, none of those below it.

        Raises:
            AdapterError: the store cannot be reached, refuses, or cannot list.
        """
        import obstore

        async def all_of_it() -> dict[str, Stat]:
            with plain_errors(self.source, ""):
                prefix = f"{self.source.path}/" if self.source.path else None
                found = await obstore.list_with_delimiter_async(self._store, prefix)
                below = len(prefix or "")
                return {meta["path"][below:]: object_store.stat_of(meta) for meta in found["objects"]}

        if self.source.kind == "https":
            raise AdapterError(
                f"{self.source} cannot be listed: a whole model is fetched from s3, gs, az or hf"
            )
        return asyncio.run(self._again(all_of_it, ""))

    def fetch(self, name: str, stat: Stat, working: Path, *, what: str, told: Told) -> tuple[str, Stat]:
        """Fetch a file to ``working/files/name``; return its SHA-256 and what it turned out to be.

        Raises:
            AdapterError: it cannot be had, or keeps changing.
            OSError: it cannot be written.
        """
        for _ in range(1 + self._patience.changes):
            with contextlib.suppress(ChangedError):
                return self._fetch(name, stat, working, Meter(what, stat.size, told)), stat
            log.warning("%s changed while it was fetched, starting it again", what)
            if (now := self.look([name]).get(name)) is None:
                raise AdapterError(f"{self.source}/{name} was removed while it was fetched")
            stat = now
        raise AdapterError(
            f"{self.source}/{name} changed {1 + self._patience.changes} times while it was fetched: "
            "wait until its upload is done"
        )

    def _fetch(self, name: str, stat: Stat, working: Path, meter: Meter) -> str:
        final = working / DONE / name
        download = Download(self._store, self.source, name, self._key(name), stat, self._patience, meter)
        onto = Part(working / f"{name}.part", stat)
        if digest := onto.finished(final):
            meter.start(stat.size)
            return digest
        with onto:
            for in_pieces in (True, False):
                with contextlib.suppress(RangesRefusedError):
                    digest = asyncio.run(download.run(onto, in_pieces=in_pieces))
                    onto.finish(final, digest)
                    return digest
                onto.forget()
        raise AdapterError(f"{self.source}/{name}: the server gives neither the file nor a part of it")

    def _key(self, name: str) -> str:
        return f"{self.source.path}/{name}" if self.source.path else name

    async def _again(self, ask: Callable[[], Coroutine[Any, Any, Result]], name: str) -> Result:
        """Ask, and again after what may pass."""
        for count in range(self._patience.tries):
            try:
                return await ask()
            except TransientError as exc:
                failure = exc
            except RangesRefusedError:
                raise AdapterError(f"{self.source} does not support what is asked of it") from None
            await asyncio.sleep(pause(self._patience, count))
        where = f"{self.source}/{name}" if name else str(self.source)
        raise AdapterError(f"{where} cannot be reached: {failure}, {self._patience.tries} times")


class Download:
    """One object, fetched once; what was fetched before is kept."""

    def __init__(
        self,
        store: "ObjectStore",
        source: Source,
        name: str,
        key: str,
        stat: Stat,
        patience: Patience,
        meter: Meter,
    ) -> None:
        self._store = store
        self._source = source
        self._name = name
        self._key = key
        self._stat = stat
        self._patience = patience
        self._meter = meter
        self._unsynced = 0
        self._syncing: asyncio.Future[None] | None = None

    async def run(self, onto: Part, *, in_pieces: bool) -> str:
        """Fetch what is missing and return the SHA-256 of the whole.

        Raises:
            AdapterError: the store refuses, or fails too often in a row.
            ChangedError: the object changed.
            RangesRefusedError: only whole objects are given.
            OSError: the disk is full or broken.
        """
        size, written = self._stat.size, onto.written
        left = deque(part.missing(size, written) if in_pieces else [(0, size)])
        self._meter.start(sum(end - start for start, end in written))
        with (
            Follower(onto.fd, size, written) as follower,
            ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="write") as writers,
        ):
            self._part, self._follower, self._writers, self._in_pieces = onto, follower, writers, in_pieces
            await _together([self._work(left) for _ in range(min(CONNECTIONS, len(left)))])
            if self._syncing is not None:
                await self._syncing
            _, digest = await asyncio.gather(
                self._in_thread(onto.sync), asyncio.to_thread(follower.hexdigest)
            )
            self._meter.end()
            return digest

    async def _work(self, left: deque[Range]) -> None:
        while left:
            while self._follower.backlog_bytes > BACKLOG_BYTES:  # noqa: ASYNC110 - a thread's, which tells no loop
                await asyncio.sleep(BACKLOG_POLL_S)
            if not left:
                return
            piece = left.popleft()
            if piece[0] < piece[1]:
                await self._fetch(piece)

    async def _fetch(self, piece: Range) -> None:
        """Fetch a piece, going on from where a connection was lost."""
        reached = piece[0]
        try:
            async for now in self._advance(piece):
                reached = now
        finally:
            # Whoever stops it, a key, an error or the end: what has come counts.
            if reached > piece[0] and (self._in_pieces or reached == piece[1]):
                self._part.add((piece[0], reached))

    async def _advance(self, piece: Range) -> AsyncIterator[int]:
        """Fetch a piece over as many connections as it takes; yields up to where it is there."""
        at, end, failures = *piece, 0
        while at < end:
            reached = at
            usual = min(LARGEST_CHUNK_BYTES, (end - piece[0]) // CHUNKS + 1)
            chunk_bytes = CUT_CHUNK_BYTES if failures else usual
            try:
                with plain_errors(self._source, self._name):
                    async for data in await self._open(at, end, chunk_bytes):
                        reached = await self._write(data, reached, end)
                        yield reached
                if reached < end:
                    raise TransientError("the connection was cut")
            except TransientError as exc:
                failures = 1 if reached > at and self._in_pieces else failures + 1
                await self._pause(exc, failures)
            if reached < end and not self._in_pieces:
                self._meter.add(at - reached)
                continue
            at = reached

    async def _open(self, at: int, end: int, chunk_bytes: int) -> Any:
        import obstore

        is_whole = (at, end) == (0, self._stat.size)
        options: Any = {} if is_whole else {"range": (at, end)}
        # A weak ETag never matches (RFC 9110), so it is only looked at in the answer.
        if self._stat.etag and not self._stat.etag.startswith("W/"):
            options["if_match"] = self._stat.etag
        result = await obstore.get_async(self._store, self._key, options=options)
        if not object_store.stat_of(result.meta).is_of(self._stat):
            raise ChangedError
        return result.stream(min_chunk_size=chunk_bytes)

    async def _write(self, data: Any, at: int, end: int) -> int:
        view = memoryview(data)
        if at + len(view) > end:
            raise TransientError("the server sent more than was asked for")
        await self._in_thread(self._part.write, view, at)
        self._meter.add(len(view))
        self._follower.add((at, at + len(view)))
        self._unsynced += len(view)
        if self._unsynced >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            # All at the end would take as long as the disk needs for the whole file.
            self._unsynced = 0
            self._syncing = asyncio.ensure_future(self._in_thread(self._part.sync))
        return at + len(view)

    async def _in_thread(self, act: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writers, act, *arguments)

    async def _pause(self, exc: TransientError, failures: int) -> None:
        """Wait before the next try.

        Raises:
            AdapterError: that was the last.
        """
        if failures >= self._patience.tries:
            raise AdapterError(
                f"{self._source}/{self._name} cannot be fetched: {exc}, {failures} times in a row; "
                "what is there already is kept, so ask again"
            )
        await asyncio.sleep(pause(self._patience, failures - 1))


def pause(patience: Patience, count: int) -> float:
    """Return how long to wait after so many failures; random, so that clients do not come back together."""
    longest = min(patience.longest_pause_s, patience.pause_s * 2**count)
    return random.uniform(longest / 2, longest)  # noqa: S311 - jitter


async def _together(works: list[Coroutine[Any, Any, None]]) -> None:
    """Run them all; the first to fail ends the others, and its error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
