"""The gateway: everything one `sive serve` holds, and the path of one request through it."""

import asyncio
import logging
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry
from sive import farewell
from sive.assemble import EngineParts, Learned, build_table, check_compat, clocks, describe_local, limits
from sive.backends import WireName
from sive.backends.openai import OpenAIBackend
from sive.calls import Call, check_weights, parse, request_id, with_sampling
from sive.chain import Chain
from sive.config import Settings
from sive.drive import Driver
from sive.errors import RequestError
from sive.face_of import face_of
from sive.health import Health, Key
from sive.policy import Policy
from sive.report import Report
from sive.routes import Model, Rest, Rung, Table
from sive.wires import Wire
from sive.wires.http import HttpWire
from sive.wires.local import LocalWire
from sive.wires.turn import Turn

from sive_serve.auth import Access, KeyRing
from sive_serve.cors import Cors
from sive_serve.direct import Direct, is_direct
from sive_serve.engine import Engine
from sive_serve.exchange import Exchange
from sive_serve.garbage import collect_rarely, tidy
from sive_serve.http import refusal
from sive_serve.metrics import Metrics
from sive_serve.page import Page
from sive_serve.pods import reconciler
from sive_serve.prober import Prober
from sive_serve.request_log import RequestLog
from sive_serve.tokens import Tokens

REFUSALS = frozenset({"http_401", "http_402", "http_403"})

REFUSED_RETRY_S = 60
"""An adapter that is not what it should be stays so until somebody changes it."""

CANCELLED_STATUS = 499
"""nginx's code for a client that closed its request; there is no standard one."""

OWN_FAULT = "an error in sive itself; its log says more"

log = logging.getLogger(__name__)


class Gateway:
    """Routes, wires, keys, metrics and the engine of one server.

    ``start`` and ``stop`` belong to the event loop that serves; the constructor only looks at the disk.
    ``stopping``: set when the server takes no more; whoever only keeps a connection open ends it then.
    """

    def __init__(self, settings: Settings, *, engine: Engine | None = None) -> None:
        self.settings = settings
        self.engine = engine
        keys = KeyRing(settings.gateway.api_keys, settings.gateway.api_keys_env)
        self.access = Access(keys, Tokens(settings.gateway.token_secrets))
        self.page = Page()
        self.admin_keys = KeyRing(settings.gateway.admin_keys, "SIVE_ADMIN_KEYS")
        self.cors = Cors(settings.gateway.cors_origins)
        self.changes: set[asyncio.Future[None]] = set()
        self.metrics = Metrics(CollectorRegistry())
        self.running: set[Exchange] = set()
        self.stopping = asyncio.Event()
        self.metrics.in_flight.set_function(lambda: len(self.running))
        self.request_log = RequestLog()
        self.policy = Policy(clocks(settings), limits(settings))
        self.health = Health(self.policy, rests=self.rests, is_probed=True)
        self.metrics.watch(self.health.open_keys)
        self.pods = reconciler(settings, observe=self.metrics.pod_changed)
        if self.pods is not None:
            self.metrics.watch_pods(self.pods.in_step)
        self.local = describe_local(settings.local)
        self._lessons: dict[tuple[str, str], Learned] = {}
        self._adapter_rests: dict[Key, Rest] = {}
        self.table: Table = {}
        self.build_routes()
        if engine is None or engine.adapters is None:  # adapters may bring a name later
            check_compat(settings, self.table)
        if engine is not None and (adapters := engine.adapters) is not None:
            adapters.wanted.changed = self.build_routes
            adapters.loaded.users = self._users
            self.metrics.watch_adapters(lambda: adapters.states.values())
        self.started_at = time.time()
        self.outcomes: dict[Key, tuple[float, str]] = {}
        self._wires: dict[WireName, Wire] = {}

    async def start(self) -> None:
        """Open the wires and start the engine; returns before the engine is ready."""
        collect_rarely()
        self._tidying = asyncio.create_task(tidy(lambda: bool(self.running)))
        self.turn = Turn()
        self._wires = {"http": HttpWire(self.turn, connect_s=self.settings.gateway.connect_s)}
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
            observe=self._probed,
        )
        self._prober.start()
        if self.pods is not None:
            self.pods.start()

    async def stop(self) -> None:
        """Stop asking, cut what still runs, close the wires and stop the engine."""
        self.stopping.set()
        self._tidying.cancel()
        for change in self.changes:
            change.cancel()
        await self._prober.stop()
        if self.pods is not None:
            await self.pods.stop()
        for exchange in list(self.running):
            exchange.cut()
        self.running.clear()
        await farewell.finish()
        for wire in self._wires.values():
            await wire.aclose()
        if self.engine is not None:
            await self.engine.stop()
        self.request_log.flush()

    def rests(self) -> dict[Key, Rest]:
        """Backends and models there that cannot answer now, and why."""
        if self.engine is None or self.engine.is_ready:
            return self._adapter_rests
        state = self.engine.state
        left = (
            f"about {state.retry_after_s} s left" if state.phase != "failed" else "it died and starts again"
        )
        why = f"the engine is not ready ({state.phase} for {state.phase_s:.0f} s, {left})"
        return {("engine", ""): Rest(why, state.retry_after_s)}

    def build_routes(self) -> None:
        """Build the routes anew from what is known now; requests under way keep theirs."""
        # A route to an adapter that nobody lists is a mistake at the start; later it may have been removed.
        parts = _parts(self.engine, may_lack_models=bool(self.table))
        self.table = build_table(self.settings, local=self.local, engine=parts, learned=self._lessons)
        self._adapter_rests = {}
        if self.engine is None:
            return
        adapters = self.engine.adapters
        states = adapters.states if adapters is not None else {}
        asked = {rung.model for model in self.table.values() for rung in model.rungs if _is_engines(rung)}
        served = {self.engine.base.name, *(state.engine_name for state in states.values())}
        for name in asked - served:
            # Callers are told how far it is; what is wrong, and where it is from, /admin/adapters says.
            how = states[name].phase if name in states else "not listed"
            why = f"the engine does not speak as {name!r} ({how})"
            self._adapter_rests["engine", name] = Rest(why, REFUSED_RETRY_S)
        self.health.forget_others("engine", asked)

    def _users(self, engine_name: str) -> int:
        """How many requests are being answered under this name of the engine's."""
        return sum(
            any(_is_engines(rung) and rung.model == engine_name for rung in exchange.model.rungs)
            for exchange in self.running
            if exchange.model is not None
        )

    def _learn(self, lessons: Mapping[tuple[str, str], Learned]) -> None:
        """What a backend says of its models; the routes are built anew when it is news."""
        if all(self._lessons.get(key) == lesson for key, lesson in lessons.items()):
            return
        self._lessons = {**self._lessons, **lessons}
        self.build_routes()

    def answer(self, exchange: Exchange, body: bytes) -> None:
        """One chat completion or completion, from the request to the end of its answer."""
        try:
            call = parse(exchange.endpoint, body, exchange.headers)
            model = self.model(call.model, exchange.headers.get("authorization", ""))
            check_weights(exchange.headers, model.name, model.weights)
        except RequestError as problem:
            self.refuse(exchange, problem)
            return
        if model.sampling:
            call = with_sampling(call, model.sampling)
        exchange.request_id, exchange.model = call.request_id, model
        try:
            exchange.driver = self._driver(exchange, call, model)
        except Exception:  # the outermost frame of a request: whoever sent it is told
            log.exception("request %s failed", call.request_id)
            self.refuse(exchange, RequestError(OWN_FAULT, status=500, type="server_error"))
            return
        self.running.add(exchange)
        exchange.driver.start()

    def _driver(self, exchange: Exchange, call: Call, model: Model) -> Direct | Driver:
        now = asyncio.get_running_loop().time()

        def ended(report: Report, failure: Exception | None) -> None:
            self._ended(exchange, report, failure)

        if is_direct(call, model, self.health, now):
            return Direct(
                call,
                model,
                self.policy,
                health=self.health,
                wires=self._wires,
                caller=exchange,
                ended=ended,
            )
        chain = Chain(call, model, face_of(call), self.policy, health=self.health, now=now)
        return Driver(chain, self._wires, exchange, ended=lambda failure: ended(chain.report, failure))

    def refuse(self, exchange: Exchange, problem: RequestError) -> None:
        """Answer a request that reaches no route."""
        headers, body = self.refusal(problem, request_id(exchange.headers), exchange.endpoint)
        exchange.begin(problem.status, headers)
        exchange.end(body)

    def cancel(self, request_id: str, authorization: str) -> int:
        """End the requests that run under an id and are the same caller's; how many there were."""
        caller = self.access.caller(authorization)
        found = [
            exchange
            for exchange in self.running
            if exchange.request_id == request_id
            and self.access.caller(exchange.headers.get("authorization", "")) == caller
        ]
        for exchange in found:
            exchange.end_early(
                status=CANCELLED_STATUS, message="the request was cancelled", code="request_cancelled"
            )
        return len(found)

    def end_all(self, why: str = "this answer took too long to wait for") -> None:
        """End every request that still runs; each caller is told why."""
        message = f"the server is stopping, and {why}"
        for exchange in list(self.running):
            exchange.end_early(status=503, message=message, code="shutting_down")

    def refusal(
        self, problem: RequestError, request_id: str, endpoint: str = ""
    ) -> tuple[dict[str, str], bytes]:
        """Headers and body that tell a caller what is wrong; counted and logged."""
        self.metrics.refused(problem.status)
        log.info("%s - - %s refused: %s", request_id, problem.status, problem.code)
        return refusal(problem, request_id, endpoint)

    def _ended(self, exchange: Exchange, report: Report, failure: Exception | None) -> None:
        self.running.discard(exchange)
        exchange.driver = None  # it holds the exchange in turn
        if report.caller_left:
            exchange.abort()
        if failure is None:
            self._observe(report)
            return
        log.error("request %s failed", report.call.request_id, exc_info=failure)
        if exchange.has_begun:
            exchange.cut()
        else:
            self.refuse(exchange, RequestError(OWN_FAULT, status=500, type="server_error"))

    def models_for(self, authorization: str) -> Table:
        """The models that exist for this caller; ``Access.check`` has seen it."""
        grant = self.access.grant(authorization)
        if grant is None:
            return self.table
        return {name: model for name, model in self.table.items() if grant.opens(name)}

    def model(self, name: str, authorization: str) -> Model:
        """The served model of this name, if it exists for this caller.

        Raises:
            RequestError: 404, naming what is served.
        """
        table = self.models_for(authorization)
        model = table.get(name)
        if model is None:
            served = ", ".join(table)
            message = f"the model {name[:200]!r} does not exist; served are: {served}"
            raise RequestError(message, status=404, param="model", code="model_not_found")
        return model

    def _reload_what_is_missing(self, report: Report, engine: Engine) -> None:
        """An engine that does not know an adapter it has loaded has lost it."""
        model = self.table.get(report.call.model)
        is_missing = any(one.backend == "engine" and one.reason == "http_404" for one in report.failures)
        if not is_missing or model is None or engine.adapters is None:
            return
        for rung in model.rungs:
            if _is_engines(rung):
                engine.adapters.loaded.reload(rung.model)

    def _remember(self, report: Report, answered: str = "answered") -> None:
        """What each backend did last as each model, for /status; a refused key is said once in the log."""
        now = time.monotonic()
        for failure in report.failed_over:
            if failure.reason == "resting":
                continue
            key = failure.backend, failure.model
            _, before = self.outcomes.get(key, (now, ""))
            self.outcomes[key] = now, failure.message
            if failure.reason in REFUSALS and failure.message != before:
                log.warning(
                    "backend %r: %s: is its key right, and paid for?", failure.backend, failure.message
                )
        if report.is_complete:
            self.outcomes[report.backend, report.backend_model] = now, answered

    def _probed(self, backend: str, report: Report) -> None:
        self.metrics.probed(backend, report)
        self._tell_pods(report)
        self._remember(report, "answered a probe")

    def _tell_pods(self, report: Report) -> None:
        """A pod that fails somebody may lack an adapter: with 404, or 503 where its CPU has that name."""
        if self.pods is not None:
            for failure in report.failures:
                if failure.reason != "resting":
                    self.pods.missed(failure.backend)

    def _observe(self, report: Report) -> None:
        self.metrics.observe(report)
        if report.failures and self.engine is not None:
            self._reload_what_is_missing(report, self.engine)
        self._tell_pods(report)
        self._remember(report)
        self.request_log.add(report)


def _is_engines(rung: Rung) -> bool:
    return rung.backend.name == "engine"


def _parts(engine: Engine | None, *, may_lack_models: bool) -> EngineParts | None:
    if engine is None:
        return None
    backend = OpenAIBackend(
        "engine",
        engine.url,
        context_tokens=engine.context_tokens,
        resume="tokens",
        probe="token",
        position_seeds=not engine.on_cpu,  # vLLM's CPU runner draws from a generator that starts anew
    )
    return EngineParts(backend, list(engine.models.values()), may_lack_models=may_lack_models)
