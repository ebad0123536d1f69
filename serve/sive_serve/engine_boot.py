"""One life of the engine under one guard, as the gateway sees it."""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path
from typing import Any

from sive_serve import engine_guard
from sive_serve.daemon_thread import in_thread

GRACE_S = 12.0  # from TERM to KILL; longer than vLLM's own shutdown timeout
EVENT_BYTES = 2**20
GONE_S = GRACE_S + engine_guard.KILL_S + 10.0

log = logging.getLogger(__name__)


class Boot:
    """A running guard. Read ``events`` to the end, then ``close``, which is safe at any moment."""

    def __init__(self, process: "subprocess.Popen[bytes]", job: dict[str, Any]) -> None:
        self._process = process
        self._lines = asyncio.StreamReader(limit=EVENT_BYTES)
        self._job = job
        self._pids: dict[str, Any] = {}
        self._has_exited = False
        loop = asyncio.get_running_loop()
        # A thread that owns the pipe: uvloop's transport leaves it open at its end, and closes it twice.
        threading.Thread(target=self._read, args=(loop,), name="sive-guard", daemon=True).start()

    @classmethod
    async def start(cls, job: dict[str, Any]) -> "Boot":
        """Start a guard and hand it its job.

        Raises:
            OSError: the guard cannot be started.
        """
        # Not uvloop's own way, which forks and runs Python in the child: a lock that another of our threads
        # holds at that moment, in one of the CPU model's libraries say, is held there for ever, and the loop
        # waits for that child. Popen without a preexec_fn calls vfork, and nothing of Python's.
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - no slower than the loop's; our own module
            [sys.executable, "-I", str(Path(engine_guard.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,  # Ctrl-C is for the gateway, which drains first
            env={},
        )
        boot = cls(process, {**job, "grace_s": GRACE_S})
        assert process.stdin is not None  # noqa: S101 - for the type checker
        # One of its own for the thread that writes: ours may be closed meanwhile.
        pipe = os.fdopen(os.dup(process.stdin.fileno()), "wb", buffering=0)
        try:
            await in_thread(lambda: _write(pipe, json.dumps(boot._job).encode() + b"\n"))
        except BaseException:  # a stop that comes meanwhile
            await boot.close()
            raise
        return boot

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand on what the guard tells; in a thread."""
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        with contextlib.suppress(RuntimeError), self._process.stdout as told:  # the loop is closed
            while part := told.read(65536):
                loop.call_soon_threadsafe(self._lines.feed_data, part)
            loop.call_soon_threadsafe(self._lines.feed_eof)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the guard tells, until it is gone."""
        # A guard that is killed may leave half a line.
        while (line := await self._lines.readline()).endswith(b"\n"):
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "pids":
                self._pids = event
            self._has_exited |= event["event"] == "exit"
            yield event

    def leave(self) -> None:
        """Ask the guard to end the engine, and do not wait."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.close()

    async def close(self) -> None:
        """End the engine and wait until nothing of it is left."""
        self.leave()
        try:
            async with asyncio.timeout(GONE_S):
                async for _ in self.events():
                    pass
                await in_thread(self._process.wait)
        except TimeoutError:
            log.error("engine: its guard (pid %s) does not end, killing it", self._process.pid)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await in_thread(self._process.wait)
        if not self._has_exited:
            await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        """Do what a guard does at its end, for one that was killed."""
        engine_guard.kill(self._find, pause=time.sleep)
        engine_guard.remove_segments(self._pids.get("segments", ()))
        engine_guard.remove_folder(self._job["scratch"])

    def _find(self) -> list[engine_guard.Process]:
        """Find what is left of the engine: processes told of, those of its group, and those below."""
        if not self._pids:
            return []
        if not engine_guard.ON_LINUX:
            return engine_guard.group(self._pids["pgid"])
        table = engine_guard.processes()
        told = {(pid, started) for pid, started in self._pids["pids"]}
        left = {
            (pid, started)
            for pid, (_, group, started) in table.items()
            if (pid, started) in told or group == self._pids["pgid"]
        }
        return sorted(left | set(engine_guard.descendants(pid for pid, _ in left)))


def _write(pipe: FileIO, data: bytes) -> None:
    """Give the guard its job, which may be more than a pipe holds."""
    left = memoryview(data)
    with contextlib.suppress(BrokenPipeError), pipe:  # it is gone, which its events say
        while left:
            left = left[pipe.write(left) :]
