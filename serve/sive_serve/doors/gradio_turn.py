"""One call of a function: what its arguments ask, and its outputs while the answer grows; pure."""

from dataclasses import dataclass
from typing import Any

from sive.config import FunctionSettings
from sive.errors import RequestError
from sive.protocol import Json

from sive_serve.doors.history import Messages, is_pairs, messages, with_answer

PARAMETERS = ("message", "history", "philosopher")


@dataclass(frozen=True, slots=True)
class Turn:
    """A checked call. ``philosopher``: who the caller wants to hear, empty when it does not say."""

    message: str
    history: list[Any]
    messages: Messages
    philosopher: str

    def outputs(self, text: str) -> list[Any]:
        """(message, history) -> (message, history): the answer so far, and the history with it."""
        return [text, with_answer(self.history, self.message, text)]

    def growth(self, more: str) -> list[Any]:
        """What changes in the outputs when ``more`` is said, as the edits of protocol ``sse_v3``."""
        number = len(self.history)
        path = [number, 1] if is_pairs(self.history) else [number + 1, "content"]
        return [[["append", [], more]], [["append", path, more]]]


def turn(function: FunctionSettings, data: Any) -> Turn:
    """The call that these arguments make.

    Raises:
        RequestError: 422, an argument is missing or of another kind; ``param`` names it.
    """
    if not isinstance(data, list):
        raise _wrong("data", "it must be a list of arguments")
    taken = PARAMETERS if function.philosopher else PARAMETERS[:2]
    if len(data) > len(taken):
        raise _wrong("data", f"{len(data)} arguments, and the function takes {', '.join(taken)}")
    message, history, philosopher = (data[number] if number < len(data) else None for number in range(3))
    if not isinstance(message, str) or not message.strip():
        raise _wrong("message", "it must be a text that is not empty")
    if philosopher is not None and not isinstance(philosopher, str):
        raise _wrong("philosopher", "it must be a name")
    said = messages(history, message)
    return Turn(message, history or [], said, philosopher or function.model or "")


def named(function: FunctionSettings, asked: Json) -> list[Any]:
    """Named arguments in the function's order.

    Raises:
        RequestError: 422, it takes no argument of that name.
    """
    taken = PARAMETERS if function.philosopher else PARAMETERS[:2]
    for name in asked:
        if name not in taken and name not in ("session_hash", "oauth_token"):
            raise _wrong(name[:100], f"the function takes {', '.join(taken)}")
    return [asked.get(name) for name in taken]


def _wrong(where: str, why: str) -> RequestError:
    return RequestError(f"{where}: {why}", status=422, param=where, code="invalid_type")
