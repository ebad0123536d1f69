"""What the outcome of an attempt means: pure decisions, the numbers beside them."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sive.errors import Why
from sive.protocol import Json, loads

Follow = Literal["answer", "no_answer", "again", "next_rung", "callers_answer", "too_long"]
"""``answer``: relay it. ``no_answer``: a success that is none. ``again``: once more on the same backend,
then the next rung. ``next_rung``: somebody else may do better. ``callers_answer``: the error is the
caller's own and goes back as it came. ``too_long``: only a rung with more context can help."""

Blame = Literal["nobody", "model", "host", "away", "refusal"]
"""Whose breaker an outcome counts for: the model on that backend, the whole backend, one that said itself how
long it will be away, or, for what asking again does not mend (a wrong key, no credit), the whole backend for
long."""

REFUSALS = frozenset({401, 402, 403})
LACKING = frozenset({404, 405, 501})
LOST_IN_STRICT = frozenset[Why]({"refused", "dns", "tls", "timeout", "reset", "reset_reused", "eof"})
STATUSES_IN_STRICT = frozenset({502, 503, 504})
UNSEEN = frozenset[Why]({"refused", "dns", "tls", "timeout"})
"""Ways to lose a backend before it can have seen the request."""

MAX_RETRY_AFTER_S = 3600.0
CONTEXT_WORDS = ("context_length_exceeded", "maximum context length", "context length", "context window")
BACKEND_WORDS = ("model_not_supported", "not supported by any provider")
UNKNOWN_MODEL_WORDS = ("model_not_found", "notfounderror", "does not exist")
NOBODY_WORDS = ("no_backend",)
"""How another sive says that nobody there can answer for this model; it may be well for others."""

BUSY_WORDS = ("currently busy",)
"""How vLLM's own queue says that it is full: with a 503 and no Retry-After."""

NO_WORKER_WORDS = ("no workers available", "no worker available")
"""How RunPod's load balancer says that all are busy or none has started: with a 400, of all things."""

_SAID_WAIT = re.compile(r"resets in ~?(\d{1,5})s")
"""How Replicate says when to come again: in words alone."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds. ``deadline_s`` counts only time in which the caller got nothing.

    ``whole_s`` is what a backend may take for an answer that comes in one piece, where no first token
    can be seen. ``backoff_s``: the least and the most before the same backend is asked again.
    ``patience_s``: a Retry-After up to this is waited for. ``silence_s``: nobody may say nothing for longer,
    whatever patience a backend is given. ``rest_s``: the longest an open breaker rests,
    ``refusal_s`` after a refusal.
    """

    deadline_s: float = 120
    head_s: float = 5
    first_token_s: float = 10
    stall_s: float = 8
    whole_s: float = 100
    finish_s: float = 1
    backoff_s: tuple[float, float] = (0.05, 0.25)
    patience_s: float = 3
    silence_s: float = math.inf
    rest_s: float = 5
    refusal_s: float = 300


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is read, and kept.

    ``reply_bytes``: of what a backend may send in one piece. ``held_bytes``: of all that one request keeps in
    memory, over all attempts: replies, what came before a first token, an answer that is put together or that
    could be carried on.
    """

    reply_bytes: int = 32_000_000
    held_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows an outcome, and whose breaker it counts for.

    ``wait_s``: before the same backend is asked again. ``retry_after_s``: as the backend said it.
    ``of_model``: it counts for the model on that backend alone, whatever the blame.
    """

    follow: Follow
    blame: Blame = "nobody"
    wait_s: float | None = None
    retry_after_s: float | None = None
    of_model: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """Decides what follows an outcome.

    ``strict`` is the shim without a ``sive.toml``: only a host that cannot be reached, stays silent or
    says 502, 503 or 504 hands over. A wrong key must not answer gpt2. ``attempts``: on one backend for one
    request. ``failures``: in a row, until a breaker opens. ``uniform`` draws the jitter.
    """

    clocks: Clocks = Clocks()
    limits: Limits = Limits()
    strict: bool = False
    attempts: int = 2
    failures: int = 3
    uniform: Callable[[float, float], float] = random.uniform

    def judge(self, status: int, headers: dict[str, str], body: bytes) -> Verdict:
        """What a complete reply means; ``headers`` by lower-case name."""
        if status < 400:
            return Verdict("answer") if _is_answer(status, headers, body) else Verdict("no_answer", "host")
        if self.strict and status not in STATUSES_IN_STRICT:
            return Verdict("callers_answer")
        if status == 429:
            return self._too_many(headers, body)
        if status == 500 and "html" not in headers.get("content-type", ""):
            return Verdict("again", "model", self.backoff_s())
        if status == 503:
            return self._unavailable(headers, body)
        if not _looks_like_json(headers, body):
            # A proxy says 404 like that for a pod that boots: no refusal.
            return Verdict("next_rung", "refusal" if status in REFUSALS else "host")
        if status >= 500:
            if status == 502:
                return Verdict("again", "host", self.backoff_s())
            return Verdict("next_rung", "host")
        return self._client_error(status, body)

    def lacks_endpoint(self, status: int, headers: dict[str, str], body: bytes) -> bool:
        """Does this reply say that the host has no such endpoint, rather than no such model?"""
        if status not in LACKING or "html" in headers.get("content-type", ""):
            return False  # a proxy's page says nothing of the host behind it
        return not any(word in error_text(body) for word in UNKNOWN_MODEL_WORDS)

    def lost(self, why: Why, *, before_a_byte: bool) -> Verdict:
        """What it means that a backend was lost before its first token."""
        if self.strict and why not in LOST_IN_STRICT:
            return Verdict("no_answer", "host")
        if why == "refused" or (before_a_byte and why in ("reset", "reset_reused")):
            return Verdict("again", "host", self.backoff_s())
        return Verdict("next_rung", "host")

    def backoff_s(self) -> float:
        """How long to wait, jittered, before the same backend is asked again."""
        return self.uniform(*self.clocks.backoff_s)

    def _unavailable(self, headers: dict[str, str], body: bytes) -> Verdict:
        said = error_text(body)
        if any(word in said for word in BUSY_WORDS):
            return Verdict("again", "nobody", self.backoff_s())
        wait_s = retry_after_s(headers, body)
        if any(word in said for word in NOBODY_WORDS):
            return Verdict("next_rung", "model", retry_after_s=wait_s)
        if wait_s is not None and wait_s <= self.clocks.patience_s:
            return Verdict("again", "nobody", wait_s, wait_s)
        return Verdict("next_rung", "host", retry_after_s=wait_s)

    def _client_error(self, status: int, body: bytes) -> Verdict:
        if status in (401, 402, 403):
            return Verdict("next_rung", "refusal")
        if status in (408, 425):
            return Verdict("next_rung")
        said = error_text(body)
        if status == 404:
            is_model = any(word in said for word in UNKNOWN_MODEL_WORDS)
            return Verdict("next_rung", "model" if is_model else "refusal")
        if status in (400, 413, 422) and any(word in said for word in CONTEXT_WORDS):
            return Verdict("too_long")
        if status == 400 and any(word in said for word in BACKEND_WORDS):
            return Verdict("next_rung", "refusal")
        if any(word in said for word in NO_WORKER_WORDS):
            return Verdict("next_rung", "host")
        return Verdict("callers_answer")

    def _too_many(self, headers: dict[str, str], body: bytes) -> Verdict:
        wait_s = retry_after_s(headers, body)
        if wait_s is None:
            return Verdict("again", "nobody", self.backoff_s())
        follow: Follow = "again" if wait_s <= self.clocks.patience_s else "next_rung"
        return Verdict(follow, "nobody", wait_s, wait_s)


def _is_answer(status: int, headers: dict[str, str], body: bytes) -> bool:
    return status == 200 and _looks_like_json(headers, body)


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
    return " ".join(str(error.get(name)) for name in ("code", "message", "type", "detail")).lower()


def retry_after_s(headers: dict[str, str], body: bytes = b"") -> float | None:
    """Seconds that a reply asks to wait, an hour at most; dates are used by no host we know and give None.

    ``body``: where hosts say it that do not say it in the header.
    """
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        said = _said_wait_s(body)
        if said is None:
            return None
        seconds = said
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def _said_wait_s(body: bytes) -> float | None:
    """``estimated_time`` of Hugging Face's models that load, or Replicate's words."""
    try:
        payload = loads(body) if body else None
    except ValueError:
        return None
    estimated = payload.get("estimated_time") if isinstance(payload, dict) else None
    if isinstance(estimated, int | float) and not isinstance(estimated, bool):
        try:
            return float(estimated)
        except OverflowError:  # an integer may have any number of digits
            return None
    found = _SAID_WAIT.search(error_text(body))
    return float(found.group(1)) if found else None
