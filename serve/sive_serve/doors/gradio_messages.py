"""Gradio's events as bytes: of a session's stream, and of one call's; pure."""

from typing import Any

from sive.errors import RequestError
from sive.protocol import Json, dumps

SHOWN_S = 10
"""How long Gradio's own front end shows an error."""

NOT_FOUND = "404: Not Found"
"""What Gradio says of a session or a call that it does not know; clients start anew on it."""


NO_CACHE = {"used_cache": None, "cache_duration": None, "avg_time": None}


def message(msg: str, event_id: str | None = None, **more: Any) -> bytes:
    """One message of a session's stream."""
    return b"data: " + dumps({"msg": msg, "event_id": event_id, **more}) + b"\n\n"


def starts(event_id: str) -> bytes:
    """A call waits for nobody: its place in the queue, and at once its beginning."""
    place = message("estimation", event_id, rank=0, queue_size=1, rank_eta=None)
    return place + message("process_starts", event_id, eta=None)


def generating(event_id: str, data: list[Any], speaker: Json) -> bytes:
    """Some more; ``data`` is the outputs the first time, and later what changed in them."""
    output = {"data": data, "is_generating": True, **_times(), "sive": speaker}
    return message("process_generating", event_id, output=output, success=True, time_limit=None)


def completed(event_id: str, data: list[Any], speaker: Json) -> bytes:
    """The whole."""
    output = {"data": data, "is_generating": False, **_times(), "sive": speaker}
    return message("process_completed", event_id, output=output, success=True, title=None, **NO_CACHE)


def failed(event_id: str, problem: RequestError) -> bytes:
    """It could not be answered, or broke off."""
    return message(
        "process_completed", event_id, output=failure(problem), success=False, title="Error", **NO_CACHE
    )


def session_not_found() -> bytes:
    """Nobody called in this session, or it has been answered."""
    return message("unexpected_error", message=NOT_FOUND, session_not_found=True, success=False)


def event(name: str, data: Any) -> bytes:
    """One event of a call's own stream."""
    return b"event: " + name.encode() + b"\ndata: " + dumps(data) + b"\n\n"


def failure(problem: RequestError) -> Json:
    """An error as Gradio's clients read it; these keys alone, as one of them calls a function by them."""
    return {"error": problem.message, "duration": SHOWN_S, "visible": True, "title": "Error"}


def _times() -> Json:
    times = {"duration": None, "average_duration": None}
    return {**times, "render_config": None, "changed_state_ids": [], "used_cache": None}
