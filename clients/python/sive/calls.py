"""One request of a caller, parsed and checked: what every later step may rely on."""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

from sive.errors import RequestError
from sive.frozen import frozen
from sive.protocol import Endpoint, Json, loads
from sive.responses.request import chat_body
from sive.through import THROUGH, input_bytes, lacking

MAX_HOPS = 3
WEIGHTS_HEADER = "x-sive-weights"
"""Says whose tokens a request goes on from: a sive whose model has others by now does not answer it."""

_ROLE, _CONTENT = itemgetter("role"), itemgetter("content")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@frozen
class Call:
    """A checked request. ``body`` is the caller's own JSON object and is never changed in place.

    ``prompts``: how many there are; each gets ``n`` answers. ``prompt_bytes``: the size of the text, at
    least, from which it may be plain that a context cannot hold it.
    ``hop``: how many sives it went through; ``requires_adapter``: no other voice may answer. ``raw``: the
    bytes that ``body`` was read from, empty when it was made here. ``added``: fields of ``body`` that the
    model's own sampling filled in. ``origin``: the request that this chat completion stands for where a
    backend does not have its endpoint. ``lack``: what to say when none has.
    """

    endpoint: Endpoint
    model: str
    body: Json
    stream: bool
    wants_usage: bool
    prompts: int
    prompt_bytes: int
    request_id: str
    requires_adapter: bool = False
    hop: int = 0
    raw: bytes = b""
    added: frozenset[str] = frozenset()
    origin: "Call | None" = None
    lack: RequestError | None = None

    @property
    def asked(self) -> "Call":
        """The request as the caller made it."""
        return self.origin or self

    def was_sent(self, name: str) -> bool:
        """Did the caller send this field?"""
        return name in self.body and name not in self.added


def parse(endpoint: Endpoint, raw: bytes, headers: Mapping[str, str]) -> Call:
    """Check a request; ``headers`` by lower-case name.

    Raises:
        RequestError: with the status, param and code to answer.
    """
    try:
        body = loads(raw)
    except ValueError as exc:
        raise RequestError(f"the body is not valid JSON: {exc}", code="invalid_json") from exc
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    _check_types(body)
    model = body.get("model")
    if not model:
        raise RequestError("you must provide a model", param="model", code="missing_required_parameter")
    options = body.get("stream_options") or {}
    prompts, prompt_bytes = _size(endpoint, body)
    call = Call(
        endpoint=endpoint,
        model=model,
        body=body,
        stream=bool(body.get("stream")) and endpoint != "embeddings",
        wants_usage=bool(options.get("include_usage")),
        prompts=prompts,
        prompt_bytes=prompt_bytes,
        request_id=request_id(headers),
        requires_adapter=_requires_adapter(headers),
        hop=_hop(headers),
        raw=raw,
    )
    return _beyond_chat(call) if endpoint in THROUGH else call


def _beyond_chat(call: Call) -> Call:
    """As a chat completion, where it can be one."""
    if call.endpoint != "responses":
        return replace(call, lack=lacking(call.endpoint, call.model, None))
    try:
        chat = chat_body(call.body)
    except RequestError as problem:
        return replace(call, lack=lacking(call.endpoint, call.model, problem))
    return replace(
        call,
        endpoint="chat/completions",
        body=chat,
        wants_usage=True,
        raw=b"",
        origin=call,
        prompt_bytes=_messages_bytes(chat),
    )


def _size(endpoint: Endpoint, body: Json) -> tuple[int, int]:
    """How many prompts there are, and the size of the largest."""
    if endpoint in ("chat/completions", "messages"):
        return 1, _messages_bytes(body)
    return _prompts(body) if endpoint == "completions" else (1, input_bytes(body))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and low <= value <= high


def _is_stop(value: Any) -> bool:
    several = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return isinstance(value, str) or several


_PARAMETERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda value: isinstance(value, str), "a string"),
    "stream": (lambda value: isinstance(value, bool), "true or false"),
    "stream_options": (lambda value: isinstance(value, dict), "an object"),
    "max_tokens": (lambda value: _is_integer(value) and value >= 1, "an integer of at least 1"),
    "max_output_tokens": (lambda value: _is_integer(value) and value >= 1, "an integer of at least 1"),
    "max_completion_tokens": (lambda value: _is_integer(value) and value >= 1, "an integer of at least 1"),
    "n": (lambda value: _is_integer(value) and 1 <= value <= 128, "an integer from 1 to 128"),
    "seed": (_is_integer, "an integer"),
    "temperature": (_within(0, 2), "a number from 0 to 2"),
    "top_p": (_within(0, 1), "a number from 0 to 1"),
    "presence_penalty": (_within(-2, 2), "a number from -2 to 2"),
    "frequency_penalty": (_within(-2, 2), "a number from -2 to 2"),
    "stop": (_is_stop, "a string or a list of strings"),
    "tools": (lambda value: isinstance(value, list), "a list"),
}


def _check_types(body: Json) -> None:
    for name, value in body.items():  # a request has fewer fields than there are parameters
        if value is None or name not in _PARAMETERS:
            continue
        is_fine, wanted = _PARAMETERS[name]
        if not is_fine(value):
            raise RequestError(
                f"{name!r} must be {wanted}, not {_shown(value)}", param=name, code="invalid_type"
            )


def _shown(value: Any) -> str:
    if isinstance(value, str | list | dict):
        return {"str": "a string", "list": "a list", "dict": "an object"}[type(value).__name__]
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def _messages_bytes(body: Json) -> int:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            "'messages' must be a list with at least one message", param="messages", code="invalid_type"
        )
    try:  # what nearly all are, at a fifth of the time: str.__len__ takes nothing but a string
        sum(map(str.__len__, map(_ROLE, messages)))
        return sum(map(str.__len__, map(_CONTENT, messages)))
    except (KeyError, TypeError):
        return sum(_message_bytes(message, index) for index, message in enumerate(messages))


def _message_bytes(message: Any, index: int) -> int:
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where} must be an object with a 'role'", param=where, code="invalid_type")
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    if content is None:
        return 0
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        wanted = "a string, a list of parts, or null"
        raise RequestError(f"{where}.content must be {wanted}", param=f"{where}.content", code="invalid_type")
    return sum(len(part["text"]) for part in content if isinstance(part.get("text"), str))


def _prompts(body: Json) -> tuple[int, int]:
    """How many prompts there are, and the size of the largest."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return 1, len(prompt)
    if isinstance(prompt, list) and prompt:
        if all(_is_integer(one) for one in prompt):
            return 1, len(prompt)
        if all(isinstance(one, str | list) for one in prompt):
            return len(prompt), max(map(len, prompt))
    wanted = "a string, a list of strings, or token ids"
    raise RequestError(f"'prompt' must be {wanted}", param="prompt", code="invalid_type")


def with_sampling(call: Call, sampling: Json) -> Call:
    """The call with a model's own sampling where it says nothing; a null says that the backend may choose."""
    if call.endpoint == "embeddings":
        return call
    if call.origin is not None:
        call = replace(call, origin=with_sampling(call.origin, sampling))
    if call.endpoint == "responses":
        names = {"max_tokens": "max_output_tokens"}
        sampling = {names.get(name, name): value for name, value in sampling.items()}
    has_limit = "max_completion_tokens" in call.body
    missing = {
        name: value
        for name, value in sampling.items()
        if name not in call.body and not (name == "max_tokens" and has_limit)
    }
    if not missing:
        return call
    return replace(call, body={**call.body, **missing}, raw=b"", added=frozenset(missing))


def check_weights(headers: Mapping[str, str], model: str, weights: str | None) -> None:
    """Refuse to go on from tokens of other weights.

    Raises:
        RequestError: 404, which sends who asked to the next backend.
    """
    wanted = headers.get(WEIGHTS_HEADER)
    if wanted is not None and weights is not None and wanted != weights:
        message = f"the model {model[:200]!r} has other weights now than {wanted[:200]!r}"
        raise RequestError(message, status=404, param="model", code="model_not_found")


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's own ``x-request-id`` when it is a sensible one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _requires_adapter(headers: Mapping[str, str]) -> bool:
    wanted = headers.get("x-sive-require")
    if wanted not in (None, "adapter"):  # who asks that nobody else answers must not be misunderstood
        message = f"x-sive-require must be 'adapter', not {wanted[:40]!r}"
        raise RequestError(message, param="x-sive-require", code="invalid_header")
    return wanted is not None


def _hop(headers: Mapping[str, str]) -> int:
    given = headers.get("x-sive-hop", "0")
    hop = int(given) if given.isascii() and given.isdigit() and len(given) < 4 else MAX_HOPS + 1
    if hop > MAX_HOPS:
        message = f"this request went through more than {MAX_HOPS} sives: a route leads back to itself"
        raise RequestError(message, status=508, type="server_error", code="loop_detected")
    return hop
