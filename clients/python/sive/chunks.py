"""What a chunk of an answer says: pure readings of OpenAI's shapes."""

from sive.protocol import Json, choices_of

FAILURES = ("error", "response.failed")
"""Types of events that say a failure; OpenAI's responses and Anthropic's messages have types."""

ENDS = ("message_stop", "response.completed", "response.incomplete")
"""Types of the events that end an answer."""

WORKS = ("_call.", "_list_tools.")
"""What types of events have in them that say how a tool gets on which the host itself runs."""


def is_error(chunk: Json) -> bool:
    """Is this an error inside a 200 stream?"""
    return bool(chunk.get("error")) or chunk.get("type") in FAILURES


def refusal_status(chunk: Json) -> int | None:
    """The 4xx status of an error inside a stream, as vLLM gives it in ``code``; None when it says none."""
    error = chunk.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 500 else None


def strip_ids(answer: Json) -> bool:
    """Take the token ids out of a chunk or an answer; were there any?

    Raises:
        ValueError: it has another shape than OpenAI's.
    """
    found = answer.pop("prompt_token_ids", None) is not None
    for choice in choices_of(answer):
        for key in ("token_ids", "prompt_token_ids"):
            found = choice.pop(key, None) is not None or found
    return found


def index_of(choice: Json) -> int:
    """Which of several choices it is.

    Raises:
        ValueError: it does not say so as OpenAI does.
    """
    index = choice.get("index", 0)
    if not isinstance(index, int):
        raise ValueError("a choice without an index")
    return index


def finish_reasons(chunk: Json) -> dict[int, str]:
    """The finish_reason of each choice that ends in this chunk, by its index.

    Raises:
        ValueError: the chunk has another shape than OpenAI's.
    """
    finished = {}
    for choice in choices_of(chunk):
        index = index_of(choice)
        if reason := choice.get("finish_reason"):
            finished[index] = str(reason)
    return finished


def has_token(chunk: Json) -> bool:
    """Is this an answer, rather than the role or an empty beginning?

    Raises:
        ValueError: the chunk has another shape than OpenAI's.
    """
    if "choices" in chunk:
        said = [_says_something(choice) for choice in choices_of(chunk)]  # all of them are looked at
        return any(said)
    kind = str(chunk.get("type", ""))
    return kind.endswith("delta") or kind in ENDS or any(work in kind for work in WORKS)


def _says_something(choice: Json) -> bool:
    index_of(choice)
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise ValueError("a delta that is no object")
    said = any(value for key, value in delta.items() if key != "role")
    return bool(said or choice.get("text") or choice.get("finish_reason"))
