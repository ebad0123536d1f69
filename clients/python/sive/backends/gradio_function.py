"""What a function of a Gradio app takes: as configured, or as the app itself tells it."""

from dataclasses import dataclass
from typing import Any, Literal

from sive.backends.conversation import Conversation, HistoryFormat
from sive.errors import UnavailableError
from sive.protocol import Json

MEANINGS: dict[str, tuple[str, ...]] = {
    "message": ("message", "msg", "prompt", "question", "query", "text", "user_message", "user_input"),
    "history": ("history", "chat_history", "chatbot", "messages", "conversation"),
    "system": ("system", "system_prompt", "system_message", "sys_prompt", "instructions"),
    "model": ("model", "model_name", "philosopher", "persona"),
    "max_tokens": ("max_tokens", "max_new_tokens"),
    "temperature": ("temperature", "temp"),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "seed": ("seed",),
    "repetition_penalty": ("repetition_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "presence_penalty": ("presence_penalty",),
    "stop": ("stop", "stop_sequences"),
}
"""What an argument may be given, and how apps call it."""

USUAL = "/chat"
"""What ``gr.ChatInterface`` calls its function."""


@dataclass(frozen=True, slots=True)
class Argument:
    """``meaning``: what it is given, of MEANINGS; where that says nothing, and where None, ``default``."""

    meaning: str | None
    default: Any = None
    history: HistoryFormat = "messages"


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an app; ``name`` as the app lists it.

    ``index``: its number in the app's queue, for those that cannot be called by their name; then ``inputs``
    says of each of its inputs whether it is an argument, or the app's own.
    """

    name: str
    arguments: tuple[Argument, ...]
    index: int | None = None
    inputs: tuple[bool, ...] = ()

    @property
    def api_name(self) -> str:
        """As it stands in the path of a call."""
        return self.name.removeprefix("/")

    @property
    def needs_queue(self) -> bool:
        """Can it not be called by its name? A slash in it is one of the path."""
        return "/" in self.api_name

    def values(self, said: Conversation) -> tuple[list[Any], list[str]]:
        """The arguments in order, and the names of what could not be passed on."""
        given = [_value(argument, said) for argument in self.arguments]
        taken = {argument.meaning for argument in self.arguments}
        dropped = {name for name in said.sampling if name not in taken} | said.lost_with_prefill
        dropped |= {"messages.system"} if said.system and "system" not in taken else set()
        dropped |= {"messages.history"} if said.turns and "history" not in taken else set()
        if self.index is not None and self.inputs:
            values = iter(given)
            given = [next(values, None) if is_argument else None for is_argument in self.inputs]
        return given, sorted(dropped)


def configured(name: str, arguments: tuple[str | Json, ...], history: HistoryFormat | None) -> Function:
    """A function whose arguments the configuration names in order; ``{ value = ... }`` is a constant."""
    return Function(
        name,
        tuple(
            Argument(one, history=history or "messages")
            if isinstance(one, str)
            else Argument(None, one["value"])
            for one in arguments
        ),
    )


def discovered(info: Any, wanted: str | None, history: HistoryFormat | None) -> Function:
    """The function that answers, as the app's ``info`` tells it.

    Raises:
        UnavailableError: it has none of that name, or none that looks like a chat, and what it has.
    """
    listed = info.get("named_endpoints") if isinstance(info, dict) else None
    listed = listed if isinstance(listed, dict) else {}
    parameters = {name: _parameters(one) for name, one in listed.items()}
    name = wanted if wanted is not None else _chosen(parameters)
    if name not in parameters:
        has = ", ".join(repr(one) for one in sorted(parameters)) or "none"
        what = f"no function {wanted!r}" if wanted else "no function that looks like a chat"
        message = f"the app has {what}: it has {has}; say function = ... in its [[backend]]"
        raise UnavailableError("no_function", message, needs_owner=True)
    return Function(name, _arguments(name, parameters[name], history))


def in_queue(function: Function, config: Any) -> Function:
    """The function with its number, as the app's ``config`` tells it.

    Raises:
        UnavailableError: that names no such function.
    """
    try:
        kinds = {one["id"]: one["type"] for one in config["components"]}
        found = next(one for one in config["dependencies"] if one["api_name"] == function.api_name)
        inputs = tuple(kinds.get(one) != "state" for one in found["inputs"])
        return Function(function.name, function.arguments, int(found["id"]), inputs)
    except (KeyError, TypeError, ValueError, StopIteration) as exc:
        message = f"the app's config names no function {function.name!r}"
        raise UnavailableError("no_function", message, needs_owner=True) from exc


def _parameters(endpoint: Any) -> list[Json]:
    found = endpoint.get("parameters") if isinstance(endpoint, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _chosen(parameters: dict[str, list[Json]]) -> str:
    """The usual name, else the first with a message and its history, else the first with a message."""
    meanings = {name: {_meaning(one) for one in listed} for name, listed in parameters.items()}
    if USUAL in parameters:
        return USUAL
    ranked = [name for name, has in meanings.items() if {"message", "history"} <= has]
    ranked += [name for name, has in meanings.items() if "message" in has]
    return ranked[0] if ranked else ""


def _arguments(name: str, listed: list[Json], history: HistoryFormat | None) -> tuple[Argument, ...]:
    meanings = [_meaning(one) for one in listed]
    if "message" not in meanings and (at := _first_text(listed, meanings)) is not None:
        meanings[at] = "message"
    return tuple(
        _argument(name, one, meaning, history) for one, meaning in zip(listed, meanings, strict=True)
    )


def _argument(function: str, one: Json, meaning: str | None, history: HistoryFormat | None) -> Argument:
    if meaning == "history":
        return Argument(meaning, [], history or _history_format(one.get("type")))
    if one.get("parameter_has_default") or meaning == "message":
        return Argument(meaning, one.get("parameter_default"))
    if _type(one) == "string":
        return Argument(meaning, "")
    if meaning is not None:
        return Argument(meaning)
    message = (
        f"the function {function!r} wants {one.get('parameter_name')!r}, which a request does not say:"
        " say arguments = [...] in its [[backend]]"
    )
    raise UnavailableError("no_argument", message, needs_owner=True)


def _meaning(parameter: Json) -> str | None:
    name = str(parameter.get("parameter_name")).lower()
    return next((meaning for meaning, names in MEANINGS.items() if name in names), None)


def _first_text(listed: list[Json], meanings: list[str | None]) -> int | None:
    texts = (at for at, one in enumerate(listed) if meanings[at] is None and _type(one) == "string")
    return next(texts, None)


def _type(parameter: Json) -> Literal["string"] | None:
    kind = parameter.get("type")
    return "string" if isinstance(kind, dict) and kind.get("type") == "string" else None


def _history_format(kind: Any) -> HistoryFormat:
    """Gradio 6 takes typed parts, 5 also plain text, 4 pairs; a field of any JSON says nothing."""
    definitions = kind.get("$defs", {}) if isinstance(kind, dict) else {}
    message = next((one for name, one in definitions.items() if name == "Message"), None)
    if message is not None:
        content = message.get("properties", {}).get("content", {})
        return "parts" if content.get("type") == "array" else "messages"
    items = kind.get("items", {}) if isinstance(kind, dict) else {}
    return "tuples" if isinstance(items, dict) and items.get("type") == "array" else "messages"


def _value(argument: Argument, said: Conversation) -> Any:
    match argument.meaning:
        case "message":
            return said.message
        case "history":
            return said.history(argument.history)
        case "system":
            return said.system or argument.default or ""
        case "model":
            return said.model
        case None:
            return argument.default
        case name:
            return said.sampling.get(name, argument.default)
