"""Requests beyond chat: to a backend that has their endpoint they go as they came."""

from sive.errors import RequestError
from sive.protocol import Endpoint, Json

THROUGH: frozenset[Endpoint] = frozenset({"embeddings", "messages", "responses"})
"""Endpoints that not every backend has."""

LACKS = "no_endpoint"
"""Why a backend is not asked that does not have what the request is for."""

SYSTEM_FIELDS: dict[Endpoint, str] = {"messages": "system", "responses": "instructions"}
"""Where a system prompt stands, beside chat's messages."""

ELSEWHERE = ("background", "conversation", "store")
"""Fields by which an answer leaves something behind at its backend."""

_CALLERS_OWN = ("function", "custom")
"""Tools that the caller runs."""


def input_bytes(body: Json) -> int:
    """The size of ``input``, of the longest one where there are several.

    Raises:
        RequestError: there is none.
    """
    given = body.get("input")
    if isinstance(given, str):
        return len(given)
    if isinstance(given, list) and given:
        return max(len(one) if isinstance(one, str | list) else 0 for one in given)
    raise RequestError("'input' must be a string or a list", param="input", code="invalid_type")


def leaves_something(body: Json) -> bool:
    """Would asking twice do something twice? Then nobody else is asked once it may have been done."""
    tools = body.get("tools")
    kinds = [tool.get("type", "function") for tool in tools or () if isinstance(tool, dict)]
    # A function is the caller's to run; what a host runs by itself may write a file or send a mail.
    return any(body.get(name) for name in ELSEWHERE) or any(kind not in _CALLERS_OWN for kind in kinds)


def is_about_the_past(body: Json, reply: bytes) -> bool:
    """Does a refusal name what the request would go on from, and only another backend may have?"""
    names = (body.get("previous_response_id"), body.get("conversation"))
    return any(isinstance(name, str) and name.encode() in reply for name in names if name)


def lacking(endpoint: Endpoint, model: str, problem: RequestError | None) -> RequestError:
    """What to say where no backend has the endpoint; ``problem``: why sive cannot do it by itself."""
    message = f"no backend of {model[:200]!r} has /v1/{endpoint}"
    param = None
    if problem is not None:
        message, param = f"{message}, and {problem.message}", problem.param
    return RequestError(message, status=501, type="server_error", param=param, code="not_implemented")


def with_system_prompt(endpoint: Endpoint, body: Json, prompt: str | None) -> Json:
    """The body with a model's own system prompt, where the request has none."""
    field = SYSTEM_FIELDS.get(endpoint)
    if not prompt or field is None or body.get(field) or _has_system_turn(body):
        return body
    return {**body, field: prompt}


def _has_system_turn(body: Json) -> bool:
    turns = body.get("messages") or body.get("input")
    if not isinstance(turns, list):
        return False
    return any(isinstance(turn, dict) and turn.get("role") in ("system", "developer") for turn in turns)
