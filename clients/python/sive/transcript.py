"""What one answer has said so far, over all backends that said it: what a resumed answer goes on from."""

from dataclasses import dataclass, field, replace
from typing import Any

from sive.protocol import Json, choices_of, usage

_SAID_BESIDE_TEXT = frozenset(
    {"reasoning", "reasoning_content", "tool_calls", "function_call", "refusal", "audio"}
)


BYTES_PER_ID = 40
"""Of an integer and its place in a list."""


@dataclass(slots=True)
class Transcript:
    """The one choice of an answer, fed with its chunks in either of OpenAI's two shapes.

    ``prompt_ids``, ``ids``: tokens of the prompt and of the answer as the backend that spoke last counted
    them. After the first ``settled`` ids the text is surely complete, and ``settled_chars`` long: later ones
    may end in the middle of a character. ``spent``: tokens of ``text`` from before that backend's prompt
    began to contain them.
    ``has_all_ids``: no piece of text came without its ids. ``holds_back``: text may be missing whose ids are
    there. ``is_plain``: nothing but text was said.
    """

    id: str | None = None
    created: int | None = None
    object: str | None = None
    model: str | None = None
    prompt_ids: list[int] | None = None
    ids: list[int] = field(default_factory=list)
    settled: int = 0
    settled_chars: int = 0
    text: str = ""
    pieces: int = 0
    spent: int = 0
    prompt_tokens: int | None = None
    has_all_ids: bool = True
    holds_back: bool = False
    is_plain: bool = True

    def add(self, chunk: Json) -> str:
        """Take a chunk in; return its text.

        Raises:
            ValueError: the chunk has another shape than OpenAI's.
        """
        if self.id is None:
            self.id, self.created = chunk.get("id"), chunk.get("created")
            self.object, self.model = chunk.get("object"), chunk.get("model")
        self._take_prompt(chunk.get("prompt_token_ids"))
        choices = choices_of(chunk)
        if not choices:
            return ""
        choice = choices[0]
        said = choice.get("delta") or {}
        if not isinstance(said, dict):
            raise ValueError("a delta that is no object")
        self._take_prompt(choice.get("prompt_token_ids"))
        self.is_plain = self.is_plain and not any(said.get(key) for key in _SAID_BESIDE_TEXT)
        text = said.get("content") or choice.get("text") or ""
        if not isinstance(text, str):
            raise ValueError("content that is no text")
        self._take(text, choice.get("token_ids"), was_limited=choice.get("finish_reason") == "length")
        return text

    def carried_on_by_ids(self) -> "Transcript":
        """What the next backend goes on from when it is given the ids, up to where the text is complete.

        What was said after that, it says again.
        """
        return replace(self, ids=self.ids[: self.settled], text=self.text[: self.settled_chars])

    def carried_on_by_text(self) -> "Transcript":
        """What the next backend goes on from when it is given the text: it counts tokens of its own."""
        return replace(
            self,
            prompt_ids=None,
            ids=[],
            settled=0,
            settled_chars=len(self.text),
            spent=self._shown_tokens,
            pieces=0,
            has_all_ids=True,
            holds_back=False,
        )

    def counted(self) -> "Transcript":
        """Without what was said: only who speaks, and how many tokens there were."""
        return replace(
            self, prompt_ids=None, ids=[], settled=0, settled_chars=0, text="", pieces=0, spent=self.tokens
        )

    def started_over(self) -> "Transcript":
        """What a backend goes on from that is given nothing: only who the caller thinks is speaking."""
        return Transcript(self.id, self.created, self.object, self.model, prompt_tokens=self.prompt_tokens)

    @property
    def can_go_on_by_ids(self) -> bool:
        """Are all ids known?"""
        return self.prompt_ids is not None and self.has_all_ids and self.is_plain and not self.holds_back

    @property
    def is_settled(self) -> bool:
        """Is the text of all tokens surely known?"""
        return self.has_all_ids and not self.holds_back and self.settled == len(self.ids)

    @property
    def unsettled(self) -> str:
        """The text that is not sure to be complete."""
        return self.text[self.settled_chars :]

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far; where a backend gave no ids, its pieces of text."""
        return self.spent + (len(self.ids) if self.has_all_ids else self.pieces)

    @property
    def _shown_tokens(self) -> int:
        """The tokens of what was shown, at least: ids that came early do not count."""
        return self.spent + self.pieces if self.holds_back else self.tokens

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.text) + BYTES_PER_ID * (len(self.ids) + len(self.prompt_ids or ()))

    def usage(self) -> Json | None:
        """The usage so far; None when the prompt was never counted."""
        return None if self.prompt_tokens is None else usage(self.prompt_tokens, self.tokens)

    def _take_prompt(self, ids: Any) -> None:
        if self.prompt_ids is None and isinstance(ids, list):
            self.prompt_ids = ids
            if self.prompt_tokens is None:
                self.prompt_tokens = max(0, len(ids) - self.spent)

    def _take(self, text: str, ids: Any, *, was_limited: bool) -> None:
        if isinstance(ids, list):
            self.ids += ids
        elif text:
            self.has_all_ids = False
        if text:
            self.text += text
            self.pieces += 1
            # vLLM gives no text for a token that ends inside a character. Of several at once the last may,
            # and so may the very last of an answer that reached its limit.
            if isinstance(ids, list) and len(ids) == 1 and not was_limited:
                self.settled, self.settled_chars = len(self.ids), len(self.text)
