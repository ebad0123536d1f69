"""The engine: vLLM as a child process, watched, explained when it dies, and started again."""

import asyncio
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sive.config import EngineSettings
from sive.errors import EngineError
from sive_adapters.adapters import Adapter

from sive_serve.engine_boot import Boot
from sive_serve.engine_config import engine_environ, find_program, free_port, vllm_config
from sive_serve.engine_failure import explain
from sive_serve.engine_models import EngineModel, engine_models, model_of

Phase = Literal["starting", "loading", "compiling", "adapters", "ready", "failed", "stopped"]

FIRST_BOOT_S = 60.0  # what a caller is told to wait before a boot was measured
MAX_BACKOFF_S = 30.0
STEADY_S = 60.0  # an engine ready for so long starts again without waiting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineState:
    """What the engine is doing: ``since_s`` seconds of booting, or of being ready, after ``restarts`` others.

    ``detail`` says in at most three lines why it last died; ``retry_after_s`` when asking again is
    worth while, 0 when it is ready.
    """

    phase: Phase
    since_s: float
    restarts: int
    detail: str
    retry_after_s: int


def backoff_s(deaths: int) -> float:
    """Return the wait before a start, after so many deaths in a row: 1, 2, 4, ... 30 seconds."""
    return min(MAX_BACKOFF_S, 2.0 ** min(deaths - 1, 10))


class Engine:
    """vLLM and its guard, started again whenever they die.

    ``url`` and ``models`` stay the same for the life of the object. ``environ`` is what vLLM's own is
    made from. Where its output goes, at full length, is ``log_path``.

    Raises:
        EngineError: vLLM is not installed, or a setting or adapter cannot be served.
    """

    def __init__(
        self,
        settings: EngineSettings,
        adapters: tuple[Adapter, ...],
        *,
        environ: Mapping[str, str],
        log_path: Path | None = None,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._log_path = log_path
        self._program = find_program(settings.command, environ)
        self.models: dict[str, EngineModel] = engine_models(settings, adapters)
        self._config = vllm_config(
            settings,
            adapters,
            model=model_of(settings),
            name=next(iter(self.models)),
            on_cpu=self._program.on_cpu,
        )
        self._port = int(self._config.setdefault("port", free_port()))
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self.context_tokens = settings.max_model_len
        self.on_cpu = self._program.on_cpu
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._phase: Phase = "stopped"
        self._boot: Boot | None = None
        self._booted_at = self._next_boot_at = time.monotonic()
        self._ready_at = math.inf
        self._boot_s = FIRST_BOOT_S
        self._restarts = 0
        self._detail = ""

    @property
    def state(self) -> EngineState:
        """What the engine is doing now."""
        began = self._ready_at if self._phase == "ready" else self._booted_at
        since_s = 0.0 if self._phase == "stopped" else time.monotonic() - began
        return EngineState(self._phase, since_s, self._restarts, self._detail, self._retry_after_s(since_s))

    def _retry_after_s(self, since_s: float) -> int:
        if self._phase == "ready":
            return 0
        if self._phase == "failed":
            return math.ceil(max(0.0, self._next_boot_at - time.monotonic()) + self._boot_s)
        return math.ceil(max(2.0, self._boot_s - since_s))

    async def start(self) -> None:
        """Begin to boot; returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="engine")

    async def stop(self) -> None:
        """End the engine and wait until nothing of it is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._boot is not None:
            await self._boot.close()  # once more: the first may have been cancelled halfway
        self._enter("stopped")

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the engine serves, through restarts.

        Raises:
            EngineError: it does not within ``timeout_s``; the text says why it last died.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self._phase != "ready":
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            why = self._detail or f"it is still {self._phase}"
            raise EngineError(f"the engine is not ready after {timeout_s:.0f} s: {why}") from None

    async def _run(self) -> None:
        deaths = 0
        while True:
            why = await self._live()
            deaths = 1 if time.monotonic() - self._ready_at >= STEADY_S else deaths + 1
            wait_s = backoff_s(deaths)
            self._next_boot_at = time.monotonic() + wait_s
            self._detail = why
            self._enter("failed")
            log.warning("engine: died, starts again in %.0f s: %s", wait_s, why.replace("\n", " / "))
            await asyncio.sleep(wait_s)
            self._restarts += 1

    async def _live(self) -> str:
        """Run the engine once, from its start to its last process, and return why it died."""
        self._booted_at, self._ready_at = time.monotonic(), math.inf
        try:
            # Its guard removes the folder too, for a gateway that is killed.
            with tempfile.TemporaryDirectory(prefix="sive-", ignore_cleanup_errors=True) as scratch:
                self._boot = await Boot.start(self._job(Path(scratch)))
                return await self._watch(self._boot)
        except OSError as exc:
            return f"the engine's guard cannot be started: {exc}"

    async def _watch(self, boot: Boot) -> str:
        limit = TimeLimit(self._settings.start_s, boot.leave)
        last: dict[str, Any] = {}
        try:
            async for event in boot.events():
                if event["event"] == "phase":
                    self._enter(event["phase"])
                    limit.lift(event["phase"])
                last = event
        finally:
            limit.cancel()
            await boot.close()
        if limit.is_over:
            return f"not ready after {limit.seconds:.0f} s: raise start_s under [engine]"
        if last.get("event") != "exit":
            return "the engine's guard was killed, and the engine with it"
        return explain(**{key: last[key] for key in ("code", "signal", "error_lines", "last_lines")})

    def _job(self, scratch: Path) -> dict[str, Any]:
        """Describe a boot for its guard, vLLM's ``--config`` written to the scratch folder."""
        config = scratch / "config.yaml"  # vLLM reads no other suffix; JSON is YAML
        config.write_text(json.dumps(self._config), "utf-8")
        is_local = Path(self._config["model"]).is_dir()
        return {
            "command": [*self._program.argv, "--config", str(config)],
            "env": engine_environ(self._environ, program=self._program, scratch=scratch, is_local=is_local),
            "port": self._port,
            "models": list(self.models),
            "scratch": str(scratch),
            "log": None if self._log_path is None else str(self._log_path.absolute()),
        }

    def _enter(self, phase: Phase) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        took_s = time.monotonic() - self._booted_at
        if phase == "ready":
            self._ready_at, self._boot_s = time.monotonic(), took_s
        log.info("engine: %s after %.1f s", phase, took_s)
        self._changed.set()


class TimeLimit:
    """Calls ``act`` once ``seconds`` have passed without the engine becoming ready."""

    def __init__(self, seconds: float, act: Callable[[], None]) -> None:
        self.seconds = seconds
        self.is_over = False
        self._act = act
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        self.is_over = True
        self._act()

    def lift(self, phase: str) -> None:
        """Take the limit away from an engine that is ready."""
        if phase == "ready":
            self.cancel()

    def cancel(self) -> None:
        """Take the limit away."""
        self._timer.cancel()
