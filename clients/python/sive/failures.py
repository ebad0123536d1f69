"""How each protocol says that there is no answer: as a body, or as the last events of a stream."""

import time
import uuid

from sive.protocol import Endpoint, Json, event
from sive.typed_relay import typed_event

_ANTHROPICS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def failure_body(endpoint: str, status: int, payload: Json) -> Json:
    """OpenAI's error object; for Anthropic's callers in a frame that both read."""
    if endpoint != "messages":
        return payload
    kind = _ANTHROPICS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error = payload.get("error")
    return payload | {"type": "error", "error": (error if isinstance(error, dict) else {}) | {"type": kind}}


def failure_events(endpoint: Endpoint, status: int, payload: Json, head: Json, number: int) -> bytes:
    """The end of a stream that broke off.

    ``head``: the response as far as it was told, empty where nothing was; ``number``: its next event's.
    """
    if endpoint == "messages":
        return typed_event(failure_body(endpoint, status, payload))
    if endpoint != "responses":
        return event(payload)
    error = payload["error"]
    said = {"code": "server_error", "message": error["message"]}
    failed = (head or _nothing()) | {"status": "failed", "error": said}
    told = typed_event({"type": "response.failed", "sequence_number": number, "response": failed})
    # SDKs pass the event above on like any other; of one with an ``error`` they make an exception.
    return told + typed_event({**error, **payload, "type": "error", "sequence_number": number + 1})


def _nothing() -> Json:
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": "",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
