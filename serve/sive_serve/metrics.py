"""What Prometheus scrapes."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sive.protocol import Json
from sive.report import Report

from sive_serve.adapter_state import AdapterState

DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
MAX_TOKENS = 10**9
"""What counts more for one answer is no count."""

FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)


class Metrics:
    """Counts finished requests. Labels carry served names only, so a caller cannot make new series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.in_flight = Gauge("sive_requests_in_flight", "Requests being answered.", registry=registry)
        self._requests = Counter(
            "sive_requests", "Requests answered.", ("model", "backend", "status"), registry=registry
        )
        self._duration = Histogram(
            "sive_request_duration_seconds",
            "From the request to the end of its answer.",
            ("model", "backend"),
            buckets=DURATION_S,
            registry=registry,
        )
        self._first_token = Histogram(
            "sive_time_to_first_token_seconds",
            "From the request to the first token of its answer.",
            ("model", "backend"),
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self._tokens = Counter(
            "sive_tokens",
            "Tokens as the backend counted them; chunks where a stream broke before it said.",
            ("model", "backend", "kind"),
            registry=registry,
        )
        self._failovers = Counter(
            "sive_failovers", "Rungs that could not answer, by why.", ("backend", "reason"), registry=registry
        )
        self._cut = Counter(
            "sive_streams_cut",
            "Answers that broke off and that nobody could carry on.",
            ("model", "backend"),
            registry=registry,
        )
        self._cuts = Counter(
            "sive_cuts", "Answers that a backend broke off, by why.", ("backend", "reason"), registry=registry
        )
        self._resumes = Counter(
            "sive_resumes",
            "Broken-off answers that were carried on, by how; every failed attempt counts too.",
            ("level", "outcome"),
            registry=registry,
        )
        self._hedges = Counter(
            "sive_hedges", "Second rungs asked because the first was slow.", ("model",), registry=registry
        )
        self._probes = Counter(
            "sive_probes", "Tokens asked for to see who lives.", ("backend", "outcome"), registry=registry
        )
        self._malformed = Counter(
            "sive_malformed_events", "Events of a stream that were skipped.", ("backend",), registry=registry
        )

        self._pod_changes = Counter(
            "sive_pod_adapter_changes",
            "Changes of adapters asked of pods, by what became of them.",
            ("backend", "action", "outcome"),
            registry=registry,
        )
        self._series: dict[tuple[str, str], _Series] = {}

    def refused(self, status: int) -> None:
        """A request that never reached a route: bad key, bad JSON, unknown model."""
        self._requests.labels("", "", str(status)).inc()

    def observe(self, report: Report) -> None:
        """A request is over."""
        model, backend = report.call.model, report.backend
        series = self._series.get((model, backend))
        if series is None:
            series = self._series[model, backend] = _Series(self, model, backend)
        series.answered("499" if report.caller_left and not report.status else str(report.status))
        for failure in report.failed_over:
            self._failovers.labels(failure.backend, failure.reason).inc()
        if report.malformed:
            self._malformed.labels(backend).inc(report.malformed)
        self._count_cuts(report)
        if report.first_token_at is None:
            return
        series.first_token.observe(report.first_token_at - report.started_at)
        if report.ended_at is not None:
            series.duration.observe(report.ended_at - report.started_at)
        series.count_tokens(report.usage or {"completion_tokens": report.chunks})

    def probed(self, backend: str, report: Report) -> None:
        """A probe is over."""
        self._probes.labels(backend, "token" if report.is_complete else "none").inc()

    def pod_changed(self, backend: str, action: str, outcome: str) -> None:
        """A pod was asked for a change of its adapters."""
        self._pod_changes.labels(backend, action, outcome).inc()

    def watch_pods(self, in_step: Callable[[], Mapping[str, bool]]) -> None:
        """Show which pods have the adapters that are wanted whenever somebody looks."""
        self.registry.register(_Pods(in_step))

    def watch_adapters(self, states: Callable[[], Iterable[AdapterState]]) -> None:
        """Show which adapters of the engine answer whenever somebody looks."""
        self.registry.register(_Adapters(states))

    def watch(self, open_breakers: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Show which breakers are open whenever somebody looks."""
        self.registry.register(_Breakers(open_breakers))

    def _count_cuts(self, report: Report) -> None:
        for cut in report.cuts:
            self._cuts.labels(cut.backend, cut.reason).inc()
        for level, outcome in report.resumes:
            self._resumes.labels(level, outcome).inc()
        if report.is_broken_off:
            self._cut.labels(report.call.model, report.backend).inc()
        if report.hedges:
            self._hedges.labels(report.call.model).inc(report.hedges)


class _Series:
    """The series of one model and backend: looking them up by their labels costs more than counting."""

    def __init__(self, metrics: Metrics, model: str, backend: str) -> None:
        self.first_token = metrics._first_token.labels(model, backend)
        self.duration = metrics._duration.labels(model, backend)
        self._tokens = [
            (f"{kind}_tokens", metrics._tokens.labels(model, backend, kind))
            for kind in ("prompt", "completion")
        ]
        self._requests = metrics._requests
        self._labels = model, backend
        self._by_status: dict[str, Counter] = {}

    def answered(self, status: str) -> None:
        """A request more."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self._requests.labels(*self._labels, status)
        counter.inc()

    def count_tokens(self, usage: Json) -> None:
        """What it took, as far as these are counts."""
        for name, counter in self._tokens:
            count = usage.get(name)
            if isinstance(count, int) and 0 < count < MAX_TOKENS:
                counter.inc(count)


class _Adapters(Collector):
    """A series for every adapter that is wanted: 1 when the engine speaks as it, 0 when it must not."""

    def __init__(self, states: Callable[[], Iterable[AdapterState]]) -> None:
        self._states = states

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The adapters and the versions that answer."""
        family = GaugeMetricFamily(
            "sive_adapter_serving",
            "1 when the engine speaks as this adapter and was seen to.",
            labels=("adapter", "version"),
        )
        for state in self._states():
            version = state.serving.short if state.serving is not None else ""
            family.add_metric([state.adapter.name, version], float(state.serving is not None))
        yield family


class _Pods(Collector):
    """A series for every pod that is kept at a list: 1 when it serves all that is wanted there."""

    def __init__(self, in_step: Callable[[], Mapping[str, bool]]) -> None:
        self._in_step = in_step

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The pods."""
        family = GaugeMetricFamily(
            "sive_pod_adapters_in_step",
            "1 while a pod serves all the adapters that the gateway's list wants of it.",
            labels=("backend",),
        )
        for backend, is_in_step in self._in_step().items():
            family.add_metric([backend], float(is_in_step))
        yield family


class _Breakers(Collector):
    """A series for every open breaker; ``model`` is empty where the whole backend rests."""

    def __init__(self, open_breakers: Callable[[], Iterable[tuple[str, str]]]) -> None:
        self._open_breakers = open_breakers

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The breakers that are open now."""
        family = GaugeMetricFamily(
            "sive_backend_open", "1 while a backend is left alone.", labels=("backend", "model")
        )
        for backend, model in self._open_breakers():
            family.add_metric([backend, model], 1)
        yield family
