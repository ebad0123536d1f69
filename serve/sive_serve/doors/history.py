"""A conversation as old clients keep it: pairs of question and answer, or messages; pure."""

from typing import Any

from sive.errors import RequestError
from sive.protocol import Json

Messages = list[Json]
ROLES = ("system", "user", "assistant")
FORMS = "[[question, answer], ...] or [{role, content}, ...]"


def messages(history: Any, message: str) -> Messages:
    """The conversation as OpenAI spells it, with ``message`` last.

    Raises:
        RequestError: 422, the history has neither form; ``param`` names the entry.
    """
    said: Messages = []
    for number, entry in enumerate(_entries(history)):
        said += _pair(entry, number) if isinstance(entry, list) else [_message(entry, number)]
    return [*said, {"role": "user", "content": message}]


def is_pairs(history: Any) -> bool:
    """Does it keep pairs? The oldest clients do, and an empty one is theirs."""
    return not history or isinstance(history[0], list)


def with_answer(history: Any, message: str, answer: str) -> list[Any]:
    """The history with this question and its answer, in the form that it came in."""
    if is_pairs(history):
        return [*(history or []), [message, answer]]
    return [*history, {"role": "user", "content": message}, {"role": "assistant", "content": answer}]


def _entries(history: Any) -> list[Any]:
    if history is None:
        return []
    if not isinstance(history, list):
        raise _wrong("history", f"it must be {FORMS}")
    if len({isinstance(entry, list) for entry in history}) > 1:
        raise _wrong("history", f"pairs and messages are mixed: it must be {FORMS}")
    return history


def _pair(pair: list[Any], number: int) -> Messages:
    """Either side may be missing, as in a greeting, which nobody asked for."""
    if len(pair) != 2 or not all(side is None or isinstance(side, str) for side in pair):
        raise _wrong(f"history[{number}]", "a pair is [question, answer], each a string or null")
    sides = zip(("user", "assistant"), pair, strict=True)
    return [{"role": role, "content": side} for role, side in sides if side]


def _message(entry: Any, number: int) -> Json:
    where = f"history[{number}]"
    if not isinstance(entry, dict) or entry.get("role") not in ROLES:
        raise _wrong(where, f"a message has a role ({', '.join(ROLES)}) and content")
    return {"role": entry["role"], "content": _text(entry.get("content"), where)}


def _text(content: Any, where: str) -> str:
    """Gradio 6 keeps parts: text, and files that nobody here reads."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(f"{where}.content", "it must be a string, or a list of text parts")
    texts = [part if isinstance(part, str) else _part(part) for part in content]
    if None in texts:
        raise _wrong(f"{where}.content", "only parts of type 'text' are understood")
    return "".join(text for text in texts if text)


def _part(part: Any) -> str | None:
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    return None


def _wrong(where: str, why: str) -> RequestError:
    return RequestError(f"{where}: {why}", status=422, param=where, code="invalid_history")
