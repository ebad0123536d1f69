"""What the caller is told of an answer: who speaks, and why there is none."""

import math
from collections.abc import Iterable, Mapping

from sive.calls import Call
from sive.events import Cancelled, Head
from sive.policy import Policy
from sive.protocol import Json, error, error_of
from sive.reasons import NOBODY
from sive.relay import Label
from sive.report import Failure, Report
from sive.resume import Plan
from sive.routes import Model, Rung
from sive.through import LACKS

DEFAULT_RETRY_AFTER_S = 5.0

EMPTY = (
    "its route is empty, and there is no CPU model: it is switched off, "
    "or not installed (pip install '.[local]' in a checkout)"
)

HEADERS_OF_ERRORS = ("retry-after", "x-ratelimit-", "x-should-retry")
"""Headers that go back with a caller's own error, by how they begin."""

Told = tuple[int, Json, dict[str, str]]
"""A status, an OpenAI error object, and headers."""


class Words:
    """Labels, headers and errors of one request."""

    def __init__(self, call: Call, model: Model, policy: Policy, report: Report) -> None:
        self._call = call
        self._model = model
        self._policy = policy
        self._report = report

    def label(self, plan: Plan, head: Head) -> Label:
        """What is added to an answer of this backend."""
        is_truncated = head.headers.get("x-sive-truncated") == "1"
        return self._label(plan, is_truncated=is_truncated, is_resumed=plan.level is not None)

    def last_label(self, rung: Rung) -> Label:
        """What is added to an end that this backend could not say itself."""
        said = self._said(rung, [], is_truncated=False, is_resumed=True)
        return Label(self._name(rung), said, self._call.was_sent)

    def headers(self, rung: Rung | None) -> dict[str, str]:
        """The head of an answer, or of an error when nobody answers."""
        headers = {"x-request-id": self._call.request_id, "x-sive-attempts": str(self._report.attempts)}
        if rung is not None:
            headers["x-sive-backend"] = rung.backend.name
            headers["x-sive-degraded"] = "true" if rung.is_degraded else "false"
        return headers

    def nobody(self, too_long: str, reads_at_most: int) -> Told:
        """Nobody could answer: 400 when the request is too long for all, else 503 and why each could not."""
        failures = self._report.failures
        reasons = {failure.reason for failure in failures} - {"degraded"}
        if self._call.lack is not None and reasons == {LACKS}:
            lack = self._call.lack
            return lack.status, error_of(lack), {"x-should-retry": "false"}
        if reasons == {"context_length"}:
            message = too_long or (
                f"This model's maximum context length is {reads_at_most} tokens; your request is longer."
            )
            return 400, error(message, type="invalid_request_error", code="context_length_exceeded"), {}
        # Another sive asked for no other voice: it is told of those that could have been its own.
        told = self._report.failed_over if self._call.hop else []
        message = f"{NOBODY} {self._model.name!r}: {_whys(told or failures) or EMPTY}"
        waits = [failure.retry_after_s for failure in failures if failure.retry_after_s is not None]
        wait_s = math.ceil(min(waits, default=DEFAULT_RETRY_AFTER_S))
        # The SDKs' own retries would only knock again at doors that were just tried.
        headers = {"retry-after": str(max(1, wait_s)), "x-should-retry": "false"}
        return 503, error(message, type="server_error", code="no_backend"), headers

    def _label(self, plan: Plan, *, is_truncated: bool, is_resumed: bool) -> Label:
        said = self._said(plan.rung, plan.dropped, is_truncated=is_truncated, is_resumed=is_resumed)
        return Label(self._name(plan.rung), said, self._call.was_sent)

    def _name(self, rung: Rung) -> str | None:
        return None if rung.is_degraded or self._policy.strict else self._model.name

    def _said(self, rung: Rung, dropped: list[str], *, is_truncated: bool, is_resumed: bool) -> Json:
        return {
            "backend": rung.backend.name,
            "degraded": rung.is_degraded,
            "resumed": is_resumed,
            "truncated": is_truncated,
            "dropped": dropped,
        }


def _whys(failures: Iterable[Failure]) -> str:
    """Why each backend could not answer, in the order in which they were asked; nothing is said twice."""
    said: dict[str, list[str]] = {}
    for failure in failures:
        messages = said.setdefault(failure.backend, [])
        if failure.message not in messages:
            messages.append(failure.message)
    return "; ".join(f"{backend}: {', then '.join(messages)}" for backend, messages in said.items())


def broken_off(rung: Rung, message: str) -> Told:
    """An answer that nobody could carry on."""
    what = f"the answer broke off: backend {rung.backend.name!r}: {message}"
    return 502, error(what, type="server_error", code="stream_interrupted"), {}


def bad_gateway(rung: Rung, message: str) -> Told:
    """The SDK's own host failed in a way that nobody else may answer for."""
    what = f"backend {rung.backend.name!r}: {message}"
    return 502, error(what, type="server_error", code="bad_gateway"), {}


def cancelled(why: Cancelled) -> Told:
    """The request was ended from outside."""
    return why.status, error(why.message, type="server_error", code=why.code), {"x-should-retry": "false"}


def of_the_callers_own_error(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that go back with it."""
    return {name: value for name, value in headers.items() if name.startswith(HEADERS_OF_ERRORS)}
