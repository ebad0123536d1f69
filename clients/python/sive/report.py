"""What became of a request: what metrics and logs are made from."""

from dataclasses import dataclass, field

from sive.calls import Call
from sive.protocol import Json


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rung did not answer: ``reason`` is one word for metrics, ``message`` is for callers."""

    backend: str
    reason: str
    message: str
    retry_after_s: float | None = None


@dataclass(slots=True)
class Report:
    """What became of a request. Times are the events' own, in seconds.

    ``status``: what the caller got; for a stream that ended in an error event the status of that error.
    ``malformed``: events that could not be read and were skipped.
    """

    call: Call
    started_at: float
    status: int = 0
    backend: str = ""
    is_degraded: bool = False
    attempts: int = 0
    failures: list[Failure] = field(default_factory=list)
    first_token_at: float | None = None
    ended_at: float | None = None
    usage: Json | None = None
    chunks: int = 0
    malformed: int = 0
    caller_left: bool = False
    is_complete: bool = False

    @property
    def failed_over(self) -> list[Failure]:
        """The failures of rungs that were wanted: another voice that was not is no failure."""
        return [failure for failure in self.failures if failure.reason != "degraded"]
