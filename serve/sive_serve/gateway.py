"""The gateway: everything one `sive serve` holds, and the path of one request through it."""

import asyncio
import gc
import logging
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry
from sive.assemble import EngineModel, EngineParts, Learned, build_table, clocks, describe_local
from sive.backends import WireName
from sive.backends.openai import OpenAIBackend
from sive.calls import Call, parse, request_id
from sive.chain import Chain
from sive.config import Settings
from sive.drive import Driver
from sive.errors import RequestError
from sive.faces import StreamFace, WholeFace
from sive.health import Health
from sive.policy import Policy
from sive.protocol import Endpoint
from sive.report import Report
from sive.routes import Model, Rest, Table
from sive.wires import Wire
from sive.wires.http import HttpWire
from sive.wires.local import LocalWire

from sive_serve.asgi import AsgiCaller, CallerLeftError, Receive, Scope, Send, headers_of, read_body, refuse
from sive_serve.auth import KeyRing
from sive_serve.engine import Engine
from sive_serve.metrics import Metrics
from sive_serve.prober import Prober
from sive_serve.running import Running

REFUSALS = frozenset({"http_401", "http_402", "http_403"})

WATCH_AFTER_S = 0.02

OWN_FAULT = "an error in sive itself; its log says more"

log = logging.getLogger(__name__)


class Gateway:
    """Routes, wires, keys, metrics and the engine of one server.

    ``start`` and ``stop`` belong to the event loop that serves; the constructor only looks at the disk.
    """

    def __init__(self, settings: Settings, *, engine: Engine | None = None) -> None:
        self.settings = settings
        self.engine = engine
        self.keys = KeyRing(settings.gateway.api_keys)
        self.metrics = Metrics(CollectorRegistry())
        self.running = Running()
        self.metrics.in_flight.set_function(lambda: self.running.count)
        self.policy = Policy(clocks(settings))
        self.health = Health(self.policy, rests=self.rests, is_probed=True)
        self.metrics.watch(self.health.open_keys)
        self.local = describe_local(settings.local)
        self.table: Table = build_table(settings, local=self.local, engine=_parts(engine))
        self.started_at = time.time()
        self.outcomes: dict[str, tuple[float, str]] = {}
        self._lessons: dict[tuple[str, str], Learned] = {}
        self._wires: dict[WireName, Wire] = {}

    async def start(self) -> None:
        """Open the wires and start the engine; returns before the engine is ready."""
        # What start-up made stays: the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        self._wires = {"http": HttpWire(connect_s=self.settings.gateway.connect_s)}
        if self.local is not None:
            self._wires["local"] = LocalWire(self.settings.local)
        if self.engine is not None:
            await self.engine.start()
        self._prober = Prober(
            table=lambda: self.table,
            health=self.health,
            policy=self.policy,
            wires=self._wires,
            interval_s=self.settings.gateway.probe_interval_s,
            learn=self._learn,
            observe=self.metrics.probed,
        )
        self._prober.start()

    async def stop(self) -> None:
        """Close the wires and stop the engine."""
        await self._prober.stop()
        for wire in self._wires.values():
            await wire.aclose()
        if self.engine is not None:
            await self.engine.stop()

    def rests(self) -> dict[str, Rest]:
        """Backends that cannot answer now, and why."""
        if self.engine is None or self.engine.state.phase == "ready":
            return {}
        state = self.engine.state
        why = f"the engine is not ready ({state.phase}, for {state.since_s:.0f} s)"
        return {"engine": Rest(why, state.retry_after_s)}

    def _learn(self, lessons: Mapping[tuple[str, str], Learned]) -> None:
        """What a backend says of its models; the routes are built anew when it is news."""
        if all(self._lessons.get(key) == lesson for key, lesson in lessons.items()):
            return
        self._lessons = {**self._lessons, **lessons}
        self.table = build_table(
            self.settings, local=self.local, engine=_parts(self.engine), learned=self._lessons
        )

    async def answer(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """One chat completion or completion, from the request to the end of its answer."""
        headers = headers_of(scope)
        now = asyncio.get_running_loop().time()
        try:
            body = await read_body(receive, headers, self.settings.gateway.max_body_bytes)
            call = parse(endpoint, body, headers)
            model = self._model(call)
        except RequestError as problem:
            await self.refuse(send, problem, request_id=request_id(headers))
            return
        except CallerLeftError:
            return
        face = StreamFace() if call.stream else WholeFace(call)
        chain = Chain(call, model, face, self.policy, health=self.health, now=now)
        await self._run(chain, receive, AsgiCaller(send), headers.get("authorization", ""))

    async def refuse(self, send: Send, problem: RequestError, *, request_id: str = "") -> None:
        """Answer a request that reaches no route."""
        self.metrics.refused(problem.status)
        log.info("%s - - %s refused: %s", request_id or "-", problem.status, problem.code)
        await refuse(send, problem, request_id=request_id)

    def cancel(self, request_id: str, authorization: str) -> int:
        """End the requests that run under an id and the same key; how many there were."""
        return self.running.cancel(request_id, authorization)

    async def _run(self, chain: Chain, receive: Receive, caller: AsgiCaller, authorization: str) -> None:
        """Drive a chain to its end, and tell the driver when the caller leaves."""
        driver = Driver(chain, self._wires, caller)
        watch = _Watch(receive, driver)
        request_id = chain.report.call.request_id
        self.running.add(request_id, driver, authorization)
        try:
            await driver.run()
        except Exception:  # the outermost frame of a request: the process stays up, the caller is told
            log.exception("request %s failed", chain.report.call.request_id)
            if caller.has_begun:
                raise  # the server cuts the connection: not a clean end
            await self.refuse(caller.raw_send, RequestError(OWN_FAULT, status=500, type="server_error"))
        else:
            self._observe(chain.report)
        finally:
            self.running.remove(request_id, driver)
            watch.cancel()

    def _model(self, call: Call) -> Model:
        model = self.table.get(call.model)
        if model is None:
            served = ", ".join(self.table)
            message = f"the model {call.model[:200]!r} does not exist; served are: {served}"
            raise RequestError(message, status=404, param="model", code="model_not_found")
        return model

    def _remember(self, report: Report) -> None:
        """What each backend did last, for /status; a refused key is said once in the log."""
        now = time.monotonic()
        for failure in report.failed_over:
            if failure.reason == "resting":
                continue
            _, before = self.outcomes.get(failure.backend, (now, ""))
            self.outcomes[failure.backend] = now, failure.message
            if failure.reason in REFUSALS and failure.message != before:
                log.warning(
                    "backend %r: %s: is its key right, and paid for?", failure.backend, failure.message
                )
        if report.is_complete:
            self.outcomes[report.backend] = now, "answered"

    def _observe(self, report: Report) -> None:
        self.metrics.observe(report)
        self._remember(report)
        if log.isEnabledFor(logging.INFO):
            seconds = (report.ended_at or report.started_at) - report.started_at
            tried = ", ".join(f"{failure.backend}: {failure.reason}" for failure in report.failed_over)
            log.info(
                "%s %s %s %s %.3fs%s%s",
                report.call.request_id,
                report.call.model,
                report.backend or "-",
                499 if report.caller_left else report.status,
                seconds,
                " degraded" if report.is_degraded else "",
                f" after {tried}" if tried else "",
            )


class _Watch:
    """Tells the driver when the caller leaves.

    It begins late, because a task for each of many short requests costs a tenth of their time; who left in
    the meantime is noticed then.
    """

    def __init__(self, receive: Receive, driver: Driver) -> None:
        self._receive = receive
        self._driver = driver
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def cancel(self) -> None:
        """The request is over."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        await self._receive()  # after the body, the only message there is: http.disconnect
        self._driver.left()


def _parts(engine: Engine | None) -> EngineParts | None:
    if engine is None:
        return None
    backend = OpenAIBackend(
        "engine", engine.url, context_tokens=engine.context_tokens, resume="tokens", probe="token"
    )
    models = [EngineModel(model.name, model.weights, model.parent) for model in engine.models.values()]
    return EngineParts(backend, models)
