"""What the outcome of an attempt means: pure decisions, the numbers beside them."""

import math
from dataclasses import dataclass
from typing import Literal

from sive.errors import Why
from sive.protocol import Json, loads

Verdict = Literal["answer", "no_answer", "next_rung", "callers_answer", "too_long"]
"""``answer``: relay it. ``no_answer``: a success that is none. ``next_rung``: somebody else may do better.
``callers_answer``: the error is the caller's own and goes back as it came. ``too_long``: only a rung with
more context can help."""

NEXT_RUNG_STATUSES = frozenset({401, 402, 403, 404, 408, 425, 429})
LOST_IN_STRICT = frozenset[Why]({"refused", "dns", "tls", "timeout", "reset", "reset_reused", "eof"})
STATUSES_IN_STRICT = frozenset({502, 503, 504})
MAX_RETRY_AFTER_S = 3600.0
CONTEXT_WORDS = ("context_length_exceeded", "maximum context length", "context length", "context window")
BACKEND_WORDS = ("model_not_supported", "not supported by any provider")


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds. ``deadline_s`` counts only time in which the caller got nothing.

    ``whole_s`` is what a backend may take for an answer that comes in one piece, where no first token
    can be seen.
    """

    deadline_s: float = 120
    head_s: float = 5
    first_token_s: float = 10
    stall_s: float = 8
    whole_s: float = 100
    finish_s: float = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """Decides what follows an outcome.

    ``strict`` is the shim without a ``sive.toml``: only a host that cannot be reached, stays silent or
    says 502, 503 or 504 hands over. A wrong key must not answer gpt2.
    """

    clocks: Clocks = Clocks()
    strict: bool = False

    def judge(self, status: int, headers: dict[str, str], body: bytes) -> Verdict:
        """What a complete reply means; ``headers`` by lower-case name."""
        if status < 400:
            return "answer" if status == 200 and _looks_like_json(headers, body) else "no_answer"
        if self.strict:
            return "next_rung" if status in STATUSES_IN_STRICT else "callers_answer"
        if status >= 500 or status in NEXT_RUNG_STATUSES or not _looks_like_json(headers, body):
            return "next_rung"
        said = error_text(body)
        if status in (400, 413, 422) and any(word in said for word in CONTEXT_WORDS):
            return "too_long"
        if status == 400 and any(word in said for word in BACKEND_WORDS):
            return "next_rung"
        return "callers_answer"

    def falls(self, why: Why) -> bool:
        """Does losing a backend this way, before its first token, hand over to the next rung?"""
        return not self.strict or why in LOST_IN_STRICT


def _looks_like_json(headers: dict[str, str], body: bytes) -> bool:
    return "html" not in headers.get("content-type", "") and body[:64].lstrip()[:1] == b"{"


def error_text(body: bytes) -> str:
    """The code and message of an error reply, in lower case; never shown, only looked at."""
    try:
        payload = loads(body)
    except ValueError:
        return ""
    error: Json | str = payload.get("error", payload) if isinstance(payload, dict) else {}
    if not isinstance(error, dict):
        return str(error or "").lower()
    return f"{error.get('code')} {error.get('message')} {error.get('type')}".lower()


def retry_after_s(headers: dict[str, str]) -> float | None:
    """Seconds that a reply asks to wait, an hour at most; dates are used by no host we know and give None."""
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None
