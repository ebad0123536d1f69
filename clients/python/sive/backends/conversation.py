"""A request as hosts want it that take a message and its history instead of OpenAI's messages."""

from typing import Any, Literal

from sive.errors import UnavailableError
from sive.frozen import frozen
from sive.protocol import Json

HistoryFormat = Literal["messages", "parts", "tuples"]
"""``messages``: role and text. ``parts``: role and a list of typed parts, Gradio's own since version 6.
``tuples``: pairs of what was asked and answered."""

SAMPLING_FIELDS = (
    "frequency_penalty",
    "max_tokens",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_p",
)

TEXT_FIELDS = frozenset({"messages", "model", "prompt", "stream", "stream_options", "user"})
"""What is understood by whoever answers with one text (``user`` means nothing to it and loses nothing)."""


@frozen
class Conversation:
    """``message``: what is asked now. ``turns``: what was said before, as (role, text) of user and assistant.

    ``system``: all instructions. ``sampling``: fields that were set. ``prefill``: how the answer was begun.
    ``lost``: parts of the messages that are no text, as names for ``sive.dropped``.
    """

    model: str
    message: str
    turns: list[tuple[str, str]]
    system: str
    sampling: Json
    lost: set[str]
    prefill: str = ""

    @property
    def lost_with_prefill(self) -> set[str]:
        """What is lost where nobody can go on with an answer that was begun."""
        return self.lost | ({"messages.prefill"} if self.prefill else set())

    def history(self, shape: HistoryFormat) -> list[Any]:
        """The turns before this message."""
        if shape == "tuples":
            return _pairs(self.turns)
        if shape == "parts":
            return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in self.turns]
        return [{"role": role, "content": text} for role, text in self.turns]


def conversation(body: Json) -> Conversation:
    """Read a request.

    Raises:
        UnavailableError: it is one that no host of this kind can answer.
    """
    sampling = {name: body[name] for name in SAMPLING_FIELDS if body.get(name) is not None}
    if (limit := body.get("max_completion_tokens")) is not None:
        sampling["max_tokens"] = limit
    lost: set[str] = set()
    if "messages" not in body:
        return Conversation(str(body["model"]), _prompt(body.get("prompt")), [], "", sampling, lost)
    system, turns = _said(body["messages"], lost)
    prefill = turns.pop()[1] if turns and turns[-1][0] == "assistant" else ""
    message = turns.pop()[1] if turns else ""
    return Conversation(str(body["model"]), message, turns, system, sampling, lost, prefill)


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        message = "it takes one prompt of text, no token ids and no list"
        raise UnavailableError("unsupported", message, is_well=True)
    return prompt


def _said(messages: list[Json], lost: set[str]) -> tuple[str, list[tuple[str, str]]]:
    """The instructions, and the turns; those of the same role in a row are one."""
    instructions: list[str] = []
    turns: list[tuple[str, str]] = []
    for message in messages:
        role, text = message["role"], _text(message.get("content"), lost)
        if message.get("tool_calls"):
            lost.add("messages.tool_calls")
        if role in ("system", "developer"):
            instructions.append(text)
        elif role not in ("user", "assistant"):
            lost.add(f"messages.{role[:40]}")
        elif turns and turns[-1][0] == role:
            turns[-1] = role, f"{turns[-1][1]}\n\n{text}"
        else:
            turns.append((role, text))
    return "\n\n".join(instructions), turns


def _text(content: Any, lost: set[str]) -> str:
    if not isinstance(content, list):
        return content or ""
    texts = []
    for part in content:
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            lost.add(f"messages.{str(part.get('type'))[:40]}")
    return "\n".join(texts)


def _pairs(turns: list[tuple[str, str]]) -> list[list[str | None]]:
    pairs: list[list[str | None]] = []
    for role, text in turns:
        if role == "user":
            pairs.append([text, None])
        elif pairs and pairs[-1][1] is None:
            pairs[-1][1] = text
        else:
            pairs.append([None, text])
    return pairs
