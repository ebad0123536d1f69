"""What became of a request: what metrics and logs are made from."""

from dataclasses import dataclass, field

from sive.calls import Call
from sive.protocol import Json
from sive.relay import Relay
from sive.routes import Rung


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rung did not answer: ``reason`` is one word for metrics, ``message`` is for callers.

    ``model``: what that backend calls the model.
    """

    backend: str
    model: str
    reason: str
    message: str
    retry_after_s: float | None = None


@dataclass(slots=True)
class Report:
    """What became of a request. Times are the events' own, in seconds.

    ``status``: what the caller got; for a stream that ended in an error event the status of that error.
    ``backend_model``: what the backend that answered calls the model.
    ``malformed``: events that could not be read and were skipped. ``cuts``: how backends broke an answer
    off; ``resumes``: how each was carried on, as (level, outcome): "tokens", "text", "none", "restart" when
    nothing had been shown, "length" when only the end was missing; "ok" or "failed". ``is_broken_off``:
    nobody could. ``hedges``: how often a second rung was asked because the first was slow.
    """

    call: Call
    started_at: float
    status: int = 0
    backend: str = ""
    backend_model: str = ""
    is_degraded: bool = False
    attempts: int = 0
    failures: list[Failure] = field(default_factory=list)
    first_token_at: float | None = None
    ended_at: float | None = None
    usage: Json | None = None
    chunks: int = 0
    malformed: int = 0
    hedges: int = 0
    cuts: list[Failure] = field(default_factory=list)
    resumes: list[tuple[str, str]] = field(default_factory=list)
    caller_left: bool = False
    is_cancelled: bool = False
    is_broken_off: bool = False
    is_complete: bool = False

    def fail(self, rung: Rung, reason: str, message: str, retry_after_s: float | None = None) -> None:
        """A rung did not answer, or did not go on."""
        self.failures.append(Failure(rung.backend.name, rung.model, reason, message, retry_after_s))

    def answered_by(self, rung: Rung, now: float) -> None:
        """Somebody speaks, or goes on."""
        self.status = 200
        self.backend, self.backend_model = rung.backend.name, rung.model
        self.is_degraded = self.is_degraded or rung.is_degraded
        if self.first_token_at is None:
            self.first_token_at = now

    def count(self, relay: Relay) -> None:
        """What passed through a relay."""
        self.chunks += relay.chunks
        self.malformed += relay.malformed

    def forget_open_cut(self) -> None:
        """A cut that was being mended when the request was ended is neither mended nor not."""
        mended = sum(outcome == "ok" for _, outcome in self.resumes)
        del self.cuts[mended:]

    @property
    def failed_over(self) -> list[Failure]:
        """The failures of rungs that were wanted: another voice that was not is no failure."""
        return [failure for failure in self.failures if failure.reason != "degraded"]
