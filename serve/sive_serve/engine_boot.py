"""One life of the engine under one guard, as the gateway sees it."""

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sive_serve import engine_guard

GRACE_S = 12.0  # from TERM to KILL; longer than vLLM's own shutdown timeout
EVENT_BYTES = 2**20
GONE_S = GRACE_S + engine_guard.KILL_S + 10.0

log = logging.getLogger(__name__)


class Boot:
    """A running guard. Read ``events`` to the end, then ``close``, which is safe at any moment."""

    def __init__(self, process: asyncio.subprocess.Process, job: dict[str, Any]) -> None:
        self._process = process
        self._job = job
        self._told: dict[str, Any] = {}
        self._has_exited = False

    @classmethod
    async def start(cls, job: dict[str, Any]) -> "Boot":
        """Start a guard and hand it its job.

        Raises:
            OSError: the guard cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(Path(engine_guard.__file__)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=EVENT_BYTES,
            start_new_session=True,  # Ctrl-C is for the gateway, which drains first
            env={},
        )
        boot = cls(process, {**job, "grace_s": GRACE_S})
        assert process.stdin is not None  # noqa: S101 - for the type checker
        process.stdin.write(json.dumps(boot._job).encode() + b"\n")
        return boot

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the guard tells, until it is gone."""
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        # A guard that is killed may leave half a line.
        while (line := await self._process.stdout.readline()).endswith(b"\n"):
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "pids":
                self._told = event
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
                await self._process.wait()
        except TimeoutError:
            log.error("engine: its guard (pid %s) does not end, killing it", self._process.pid)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if not self._has_exited:
            await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        """Do what a guard does at its end, for one that was killed."""
        engine_guard.kill(self._find, pause=time.sleep)
        engine_guard.remove_segments(self._told.get("segments", ()))
        engine_guard.remove_folder(self._job["scratch"])

    def _find(self) -> list[engine_guard.Process]:
        """Find what is left of the engine: processes told of, those of its group, and those below."""
        if not self._told:
            return []
        if not engine_guard.ON_LINUX:
            return engine_guard.group(self._told["pgid"])
        table = engine_guard.processes()
        told = {(pid, started) for pid, started in self._told["pids"]}
        left = {
            (pid, started)
            for pid, (_, group, started) in table.items()
            if (pid, started) in told or group == self._told["pgid"]
        }
        return sorted(left | set(engine_guard.descendants(pid for pid, _ in left)))
