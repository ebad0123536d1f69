"""What a request allows: its answer to be put together from a stream, and to be carried on after a cut."""

from dataclasses import dataclass

from sive.calls import Call
from sive.protocol import Json

ONE_PIECE_FIELDS = ("best_of", "prompt_logprobs", "use_beam_search", "audio", "prompt_embeds")
"""What cannot be streamed, or not without losing something: such answers pass through whole."""

GRAMMAR_FIELDS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
"""An engine's grammar begins anew with a new request: only starting over leads to the same answer."""

FIELDS_BEYOND_TEXT = (
    *ONE_PIECE_FIELDS,
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "modalities",
    "suffix",
    "echo",
    "prediction",
)
"""What makes an answer more than one text."""


@dataclass(frozen=True, slots=True)
class Ability:
    """What may be done when the answer to a request breaks off after some of it was shown."""

    tokens: bool
    text: bool
    none: bool


NOT_AT_ALL = Ability(tokens=False, text=False, none=False)


def ability(call: Call) -> Ability:
    """How the answer to a request can be carried on, if its backends can."""
    body = call.body
    is_one_text = (
        call.prompts == 1
        and body.get("n") in (None, 1)
        and not any(_is_asked(body.get(name)) for name in FIELDS_BEYOND_TEXT)
        and (call.endpoint == "completions" or _reads_text(body))
    )
    has_grammar = any(_is_grammar(body.get(name)) for name in GRAMMAR_FIELDS)
    is_free = is_one_text and not has_grammar
    return Ability(
        tokens=is_free and not (body.get("stop") and body.get("min_tokens")),
        text=is_free and not isinstance(body.get("prompt"), list),
        none=is_one_text and body.get("temperature") == 0,
    )


def streams_whole(call: Call) -> bool:
    """Can one JSON answer be put together from a stream of it?"""
    return not any(call.body.get(name) for name in ONE_PIECE_FIELDS)


def wants_tools(call: Call) -> bool:
    """May the answer be a call of a tool?"""
    return any(_is_asked(call.body.get(name)) for name in ("tools", "functions"))


def stops(call: Call) -> tuple[str, ...]:
    """The caller's stop strings."""
    stop = call.body.get("stop")
    return tuple(one for one in ([stop] if isinstance(stop, str) else stop or ()) if one)


def _is_asked(value: object) -> bool:
    """Is a field meant? ``logprobs: 0`` is, the log probability of the token that was drawn."""
    return value is not None and value is not False and value not in ("", [], {})


def _is_grammar(value: object) -> bool:
    return bool(value) and value != {"type": "text"}


def _reads_text(body: Json) -> bool:
    """Is all of the prompt text? Token ids do not say what a picture showed."""
    for message in body.get("messages") or ():
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            return False
    return True
