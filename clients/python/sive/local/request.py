"""What a caller asks of the local model: the OpenAI body, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sive.backends.openai import LOCAL_CHOICES
from sive.errors import RequestError
from sive.local.template import STOP, Chat, Turn
from sive.protocol import Endpoint, Json, loads

MAX_STOPS = 16


@dataclass(frozen=True, slots=True)
class LocalRequest:
    """One checked request; ``None`` where the caller leaves the choice to the model."""

    endpoint: Endpoint
    prompt: Chat | str
    stop: tuple[str, ...]
    max_tokens: int | None
    temperature: float | None
    top_p: float
    stream: bool
    choices: int
    include_usage: bool


def read(url: str, body: bytes) -> LocalRequest:
    """Return the checked request.

    ``seed`` is accepted and has no effect: CTranslate2 seeds a thread once, not a request.

    Raises:
        RequestError: not JSON, or a value that is wrong or that the CPU model has no answer to.
    """
    endpoint: Endpoint = (
        "chat/completions" if url.split("?")[0].endswith("/chat/completions") else "completions"
    )
    try:
        fields = loads(body)
    except ValueError as exc:
        raise RequestError(f"the request body is not JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise RequestError("the request body is not a JSON object")
    chat = endpoint == "chat/completions"
    return LocalRequest(
        endpoint=endpoint,
        prompt=_chat(fields) if chat else _prompt(fields),
        stop=(*_stop(fields), *((STOP,) if chat else ())),
        max_tokens=_max_tokens(fields),
        temperature=_number(fields, "temperature", 0, 2),
        top_p=_number(fields, "top_p", 0, 1) or 1.0,
        stream=bool(fields.get("stream")),
        choices=_choices(fields),
        include_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
    )


def _prompt(fields: Json) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RequestError("the local CPU model takes prompt as one string", param="prompt")
    return prompt


def _chat(fields: Json) -> Chat:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise RequestError("messages must be a list of at least one message", param="messages")
    said = [(message.get("role"), _text(message.get("content"), at)) for at, message in enumerate(messages)]
    system = "\n\n".join(text for role, text in said if role in ("system", "developer") and text)
    others = [(role, text) for role, text in said if role not in ("system", "developer")]
    turns = (Turn("Assistant" if role == "assistant" else "User", text) for role, text in others)
    goes_on = (
        bool(fields.get("continue_final_message")) and others[-1:] != [] and others[-1][0] == "assistant"
    )
    return Chat(system, tuple(turns), goes_on=goes_on)


def _text(content: Any, at: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    return "".join(_part(part, at) for part in parts)


def _part(part: Any, at: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RequestError(
        f"the local CPU model reads text only: content of type {kind!r} cannot be answered",
        param=f"messages[{at}].content",
    )


def _stop(fields: Json) -> Sequence[str]:
    stop = fields.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(text, str) for text in stops)
    ):
        raise RequestError(f"stop must be a string or at most {MAX_STOPS} strings", param="stop")
    return stops


def _choices(fields: Json) -> int:
    choices = fields.get("n")
    if choices is None:
        return 1
    if not isinstance(choices, int) or isinstance(choices, bool) or not 1 <= choices <= LOCAL_CHOICES:
        raise RequestError(
            f"the local CPU model gives 1 to {LOCAL_CHOICES} choices: n is {choices!r}", param="n"
        )
    return choices


def _max_tokens(fields: Json) -> int | None:
    for key in ("max_completion_tokens", "max_tokens"):
        value = fields.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(f"{key} must be a whole number of at least 1, not {value!r}", param=key)
        return value
    return None


def _number(fields: Json, key: str, least: float, most: float) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f"{key} must be a number from {least} to {most}, not {value!r}", param=key)
    return float(value)
