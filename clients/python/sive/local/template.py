"""Chat messages as the plain prompt of a base model, and the oldest turns dropped until they fit; pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

STOP = "\nUser:"
"""Where the answer of a base model ends: it would go on with the user's next turn."""

Count = Callable[[str], int]
"""Tokens of a text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said."""

    speaker: Literal["User", "Assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A system text, empty when there is none, and the turns, oldest first.

    ``goes_on``: the last turn is the assistant's, and not complete.
    """

    system: str
    turns: tuple[Turn, ...]
    goes_on: bool = False

    def prompt(self) -> str:
        """Return the text the model is to continue."""
        system = f"{self.system}\n\n" if self.system else ""
        turns = "".join(f"{turn.speaker}: {turn.content}\n" for turn in self.turns)
        return f"{system}{turns[:-1]}" if self.goes_on else f"{system}{turns}Assistant:"


def fit(chat: Chat, budget: int, count: Count, *, bytes_per_token: int) -> Chat:
    """Return the chat cut to ``budget`` tokens: the oldest turns go first, the last one keeps its tail.

    The system text stays unless it leaves less than a quarter of the budget to the last turn. Nothing of
    more than ``budget * bytes_per_token`` bytes is ever counted: tokenising it would take too long.
    """

    def fits(shorter: Chat) -> bool:
        prompt = shorter.prompt()
        return len(prompt.encode()) <= budget * bytes_per_token and count(prompt) <= budget

    last = chat.turns[-1:]
    if not fits(replace(chat, turns=last)):
        bare = replace(chat, turns=tuple(replace(turn, content="") for turn in last))
        crowded = not fits(bare) or budget - count(bare.prompt()) < budget // 4
        return _keep_tail(replace(chat, system="" if crowded else chat.system, turns=last), fits)
    dropped = _smallest(len(chat.turns), lambda number: fits(replace(chat, turns=chat.turns[number:])))
    return replace(chat, turns=chat.turns[dropped:])


def fit_text(text: str, budget: int, count: Count, *, bytes_per_token: int) -> str:
    """Return the tail of a raw prompt that fits ``budget`` tokens."""

    def fits(cut: int) -> bool:
        tail = text[cut:]
        return len(tail.encode()) <= budget * bytes_per_token and count(tail) <= budget

    return text[_smallest(len(text), fits) :]


def _keep_tail(chat: Chat, fits: Callable[[Chat], bool]) -> Chat:
    if not chat.turns:
        return chat
    (turn,) = chat.turns

    def cut(number: int) -> Chat:
        return replace(chat, turns=(replace(turn, content=turn.content[number:]),))

    return cut(_smallest(len(turn.content), lambda number: fits(cut(number))))


def _smallest(limit: int, holds: Callable[[int], bool]) -> int:
    """Return the smallest number up to ``limit`` from which ``holds`` is true."""
    numbers: Sequence[int] = range(limit)
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
