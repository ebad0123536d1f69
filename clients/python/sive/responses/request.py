"""A request for a response as a request for a chat completion."""

from typing import Any

from sive.errors import RequestError
from sive.protocol import Json
from sive.sampling import SAMPLING_FIELDS

RENAMED = {"max_output_tokens": "max_tokens"}
PASSED_ON = frozenset({"model", "stream", "metadata", "stop", *SAMPLING_FIELDS})
"""What both endpoints spell alike; the sampling fields are OpenAI's and vLLM's."""

WITHOUT_EFFECT = frozenset(
    {
        "input",
        "instructions",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "tool_choice",
        "truncation",
    }
)
"""What is read elsewhere, or changes nothing of a text; nothing is stored here, which the answer says."""

_TEXT_PARTS = ("input_text", "output_text", "text")
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
"""``developer`` is OpenAI's alone: other models' templates know ``system``."""


def chat_body(body: Json) -> Json:
    """The same request for chat completions.

    Raises:
        RequestError: it asks for more than text; ``param`` names what.
    """
    chat: Json = {}
    for name, value in body.items():
        if name in PASSED_ON:
            chat[name] = value
        elif name in RENAMED:
            chat[RENAMED[name]] = value
        elif name not in WITHOUT_EFFECT and not _says_nothing(name, value):
            raise _beyond_text(name)
    chat.pop("metadata", None)
    chat["messages"] = [*_instructions(body.get("instructions")), *_messages(body["input"])]
    return chat


def _says_nothing(name: str, value: Any) -> bool:
    """Is this the default, spelled out?"""
    if value is None or value is False or value in ("", [], {}, 0):
        return True
    return name == "text" and value in ({"format": {"type": "text"}}, {"format": None})


def _beyond_text(param: str) -> RequestError:
    message = f"sive itself answers text with text: {param!r} asks for more"
    return RequestError(message, status=501, type="server_error", param=param, code="not_implemented")


def _instructions(instructions: Any) -> list[Json]:
    if instructions is None or instructions == "":
        return []
    if not isinstance(instructions, str):
        raise _beyond_text("instructions")
    return [{"role": "system", "content": instructions}]


def _messages(given: Any) -> list[Json]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [_message(item, f"input[{index}]") for index, item in enumerate(given)]


def _message(item: Any, where: str) -> Json:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise _beyond_text(where)
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        raise _beyond_text(f"{where}.role")
    return {"role": role, "content": _text(item.get("content"), f"{where}.content")}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") in _TEXT_PARTS
        if not is_text or not isinstance(part.get("text"), str):
            raise _beyond_text(where)
    return "\n".join(part["text"] for part in parts)
