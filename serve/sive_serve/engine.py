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

from sive.assemble import EngineModel
from sive.config import EngineSettings
from sive.errors import EngineError, SiveError

from sive_serve.adapter_versions import Capacity
from sive_serve.boot_times import BootTimes
from sive_serve.engine_adapters import EngineAdapters
from sive_serve.engine_boot import Boot
from sive_serve.engine_client import EngineClient
from sive_serve.engine_config import engine_environ, engine_kind, find_program, free_port, vllm_config
from sive_serve.engine_failure import explain
from sive_serve.engine_loras import EngineLoras
from sive_serve.engine_models import engine_models, read_base
from sive_serve.engine_weights import EngineWeights

Phase = Literal[
    "fetching", "starting", "loading", "compiling", "adapters", "probing", "ready", "failed", "stopped"
]

OWN_FAULT = "an error in sive itself; its log says more"
MAX_BACKOFF_S = 30.0
STEADY_S = 60.0  # an engine ready for so long starts again without waiting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineState:
    """What the engine is doing: ``since_s`` seconds of booting, or of being ready, after ``restarts`` others.

    ``phase_s``: seconds in this phase. ``detail`` says in at most three lines why it last died;
    ``retry_after_s`` when asking again is worth while, 0 when it is ready. ``fetched`` and ``to_fetch``:
    bytes of adapters and weights while they are fetched.
    """

    phase: Phase
    since_s: float
    restarts: int
    detail: str
    retry_after_s: int
    phase_s: float = 0.0
    fetched_bytes: int = 0
    to_fetch_bytes: int = 0


def backoff_s(deaths: int) -> float:
    """Return the wait before a start, after so many deaths in a row: 1, 2, 4, ... 30 seconds."""
    return min(MAX_BACKOFF_S, 2.0 ** min(deaths - 1, 10))


class Engine:
    """vLLM and its guard, started again whenever they die, and the adapters that are loaded into it.

    ``url`` stays the same for the life of the object. ``environ`` is what vLLM's own is made from. Where its
    output goes, at full length, is ``log_path``; ``boot_times`` is a file that remembers how long boots take;
    ``models_dir`` is where weights are fetched to, without which vLLM fetches them itself.

    Raises:
        EngineError: vLLM is not installed, or a setting cannot be served.
    """

    def __init__(
        self,
        settings: EngineSettings,
        adapters: EngineAdapters | None = None,
        *,
        environ: Mapping[str, str],
        log_path: Path | None = None,
        boot_times: Path | None = None,
        models_dir: Path | None = None,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._log_path = log_path
        self._program = find_program(settings.command, environ)
        self.base = read_base(settings)
        self.adapters = adapters
        if adapters is not None:
            adapters.wanted.base_name = self.base.name
        # Made once before anything runs: a wrong key should be a line at the start, not a boot that fails.
        self._port = int(self._vllm_config(Capacity()).get("port") or free_port())
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self.context_tokens = settings.max_model_len
        self.on_cpu = self._program.on_cpu
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._phase: Phase = "stopped"
        self._boot: Boot | None = None
        self._times = BootTimes(boot_times)
        self._weights = None if models_dir is None else self._weights_in(models_dir)
        self._booted_at = self._entered_at = self._next_boot_at = time.monotonic()
        self._ready_at = math.inf
        self._restarts = 0
        self._detail = ""

    @property
    def models(self) -> dict[str, EngineModel]:
        """Every model that is served or should be, by the name callers know, the base first."""
        return engine_models(self.base, self.adapters.states.values() if self.adapters is not None else ())

    @property
    def is_ready(self) -> bool:
        """Does it serve?"""
        return self._phase == "ready"

    @property
    def state(self) -> EngineState:
        """What the engine is doing now."""
        now = time.monotonic()
        began = self._ready_at if self._phase == "ready" else self._booted_at
        since_s = 0.0 if self._phase == "stopped" else now - began
        fetched, to_fetch = self._fetching()
        return EngineState(
            self._phase,
            since_s,
            self._restarts,
            self._detail,
            self._retry_after_s(now - self._entered_at),
            now - self._entered_at,
            fetched,
            to_fetch,
        )

    def _fetching(self) -> tuple[int, int]:
        """Bytes that were fetched, and all that are to be."""
        if self._phase != "fetching":
            return 0, 0
        progress = [] if self._weights is None else list(self._weights.progress.values())
        progress += [] if self.adapters is None else self.adapters.fetching()
        return sum(one.done_bytes for one in progress), sum(one.total_bytes or 0 for one in progress)

    def _retry_after_s(self, phase_s: float) -> int:
        if self._phase == "ready":
            return 0
        if self._phase == "failed":
            return math.ceil(max(0.0, self._next_boot_at - time.monotonic()) + self._times.total_s)
        fetched, to_fetch = self._fetching()
        fetch_s = (to_fetch - fetched) * phase_s / fetched if fetched else None
        return max(1, math.ceil(self._times.left_s(self._phase, phase_s, fetch_s)))

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
        if self._weights is not None:
            self._weights.close()
        if self.adapters is not None:
            await self.adapters.aclose()
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
            try:
                why = await self._live()
            except Exception:  # the outermost frame of a task: without it nobody would start the engine again
                log.exception("engine: it cannot be watched")
                why = OWN_FAULT
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
        self._times.begin()
        try:
            config = await self._prepare()
            # Its guard removes the folder too, for a gateway that is killed.
            with tempfile.TemporaryDirectory(prefix="sive-", ignore_cleanup_errors=True) as scratch:
                self._boot = await Boot.start(self._job(Path(scratch), config))
                return await self._watch(self._boot, config)
        except EngineError as exc:
            return str(exc)
        except OSError as exc:
            return f"the engine's guard cannot be started: {exc}"
        finally:
            if self.adapters is not None:
                self.adapters.lost()

    async def _prepare(self) -> dict[str, Any]:
        """Fetch weights and adapters; return vLLM's configuration.

        Raises:
            EngineError: there are no weights, or an adapter's rank is more than vLLM can serve.
        """
        if self._weights is None and self.adapters is None:
            return self._vllm_config(Capacity())
        self._enter("fetching")
        found = {} if self._weights is None else await self._weights.fetch()
        folder = Path(str(found.get("model", self.base.path)))
        known = folder if folder.is_absolute() else None  # adapters are compared with what lies there
        capacity = Capacity() if self.adapters is None else await self.adapters.prepare(known)
        return self._vllm_config(capacity) | found

    def _weights_in(self, folder: Path) -> EngineWeights:
        revision = self._settings.passed_through.get("revision")
        return EngineWeights(
            self.base.path,
            None if revision is None else str(revision),
            folder,
            python=self._program.python,
            environ=self._environ,
        )

    async def _watch(self, boot: Boot, config: Mapping[str, Any]) -> str:
        limit = TimeLimit(self._settings.start_s, boot.leave)
        settling: asyncio.Task[str] | None = None
        last: dict[str, Any] = {}
        try:
            async for event in boot.events():
                last = event
                if event["event"] != "phase":
                    continue
                limit.lift(event["phase"])
                if event["phase"] == "failed" and self.adapters is not None:
                    self.adapters.lost()
                if event["phase"] == "ready":
                    settling = asyncio.create_task(self._settle(boot, config))
                else:
                    self._enter(event["phase"])
        finally:
            limit.cancel()
            why = await _end(settling)
            await boot.close()
        if limit.is_over:
            return f"not ready after {limit.seconds:.0f} s: raise start_s under [engine]"
        if why:
            return why
        if last.get("event") != "exit":
            return "the engine's guard was killed, and the engine with it"
        return explain(**{key: last[key] for key in ("code", "signal", "error_lines", "last_lines")})

    async def _settle(self, boot: Boot, config: Mapping[str, Any]) -> str:
        """Load and prove the adapters on an engine that listens, then serve; return why that failed."""
        try:
            async with EngineClient(self.url) as client:
                if self.adapters is not None:
                    self._enter("adapters")
                    kind = await engine_kind(client, config, base=self.base.weights, on_cpu=self.on_cpu)
                    loras = EngineLoras(
                        client,
                        kind,
                        self.base.name,
                        max_rank=int(config["max-lora-rank"]),
                        max_count=int(config["max-cpu-loras"]),
                    )
                    await self.adapters.settle(loras, lambda: self._enter("probing"))
                if self._phase != "failed":  # its guard may have seen it die
                    self._enter("ready")
                await asyncio.Event().wait()  # the client is the adapters' as long as the engine lives
        except SiveError as exc:
            boot.leave()
            return str(exc)
        except Exception:  # the outermost frame of a task: an engine nobody can use is started again
            log.exception("engine: its adapters cannot be loaded")
            boot.leave()
            return OWN_FAULT
        return ""

    def _vllm_config(self, capacity: Capacity) -> dict[str, Any]:
        return vllm_config(
            self._settings,
            capacity if self.adapters is not None else None,
            model=self.base.path,
            name=self.base.name,
            on_cpu=self._program.on_cpu,
        )

    def _job(self, scratch: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """Describe a boot for its guard, vLLM's ``--config`` written to the scratch folder."""
        file = scratch / "config.yaml"  # vLLM reads no other suffix; JSON is YAML
        file.write_text(json.dumps({**config, "port": self._port}), "utf-8")
        is_local = Path(config["model"]).is_dir()
        return {
            "command": [*self._program.argv, "--config", str(file)],
            "env": engine_environ(self._environ, program=self._program, scratch=scratch, is_local=is_local),
            "port": self._port,
            "models": [self.base.name],
            "scratch": str(scratch),
            "log": None if self._log_path is None else str(self._log_path.absolute()),
        }

    def _enter(self, phase: Phase) -> None:
        if phase == self._phase:
            return
        now = time.monotonic()
        self._times.took(self._phase, now - self._entered_at)
        self._phase, self._entered_at = phase, now
        if phase == "ready":
            self._ready_at = now
            self._times.succeeded()
        log.info("engine: %s after %.1f s", phase, now - self._booted_at)
        self._changed.set()


async def _end(settling: "asyncio.Task[str] | None") -> str:
    """End a settling that may be under way; return why it failed."""
    if settling is None:
        return ""
    settling.cancel()
    await asyncio.wait([settling])
    return "" if settling.cancelled() else settling.result()


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
