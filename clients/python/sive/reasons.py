"""Why another sive could not answer, in its own words: they name backends, and no addresses or keys."""

from collections.abc import Mapping

from sive.protocol import Json, loads

NOBODY = "no backend could answer for"
"""How the message of a 503 begins; the model's name and the reasons follow."""

OWN_HEADER = "x-sive-attempts"
OWN_CODES = ("no_backend", "shutting_down", "stream_interrupted")
"""Errors whose text a sive writes itself; what it passes on of others is as strange as theirs."""

MAX_CHARS = 300


def reason_in_body(headers: Mapping[str, str], body: bytes, model: str) -> str:
    """What a reply says of itself when a sive wrote it, else nothing; ``model``: as it was asked for."""
    try:
        payload = loads(body)
    except ValueError:
        return ""
    return reason_in(headers, payload, model) if isinstance(payload, dict) else ""


def reason_in(headers: Mapping[str, str], payload: Json, model: str) -> str:
    """The same for an error that came as an object, in a body or as an event."""
    error = payload.get("error")
    if OWN_HEADER not in headers or not isinstance(error, dict) or error.get("code") not in OWN_CODES:
        return ""
    message = error.get("message")
    if not isinstance(message, str) or "://" in message:
        return ""
    # Whom it was asked for is known here, and that its engine is meant says its reason.
    said = " ".join(message.removeprefix(f"{NOBODY} {model!r}: ").removeprefix("engine: ").split())
    return said if len(said) <= MAX_CHARS else said[: MAX_CHARS - 1] + "…"
