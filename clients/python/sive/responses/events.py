"""The stream of a chat completion as the events of a response."""

from sive import sse
from sive.protocol import Json, choices_of
from sive.responses.answer import ResponseAnswer, text_part
from sive.typed_relay import typed_event


class ResponseEvents:
    """Feed it whole events of a chat completion, also of several that carry each other on.

    ``head``: the response as it was told last; ``number``: of the next event.
    """

    def __init__(self, asked: Json) -> None:
        self.head: Json = {}
        self.number = 0
        self._answer = ResponseAnswer(asked)
        self._pieces: list[str] = []
        self._is_closed = False

    @property
    def text(self) -> str:
        """What was said so far."""
        return "".join(self._pieces)

    def feed(self, whole: bytes) -> bytes:
        """The events that follow from these.

        Raises:
            ValueError: the chunks have another shape than OpenAI's.
        """
        return b"".join([self._one(one) for one in sse.split(whole)])

    def so_far(self) -> Json:
        """The response with what was said of it; empty before anything was."""
        if not self.head:
            return {}
        return self._answer.json("in_progress", [self._answer.message(self.text, "incomplete")])

    def _one(self, event: bytes) -> bytes:
        data = sse.read(event)
        if data is None:
            return event  # a comment
        return self._close() if data.is_done else self._chunk(data.json())

    def _chunk(self, chunk: Json) -> bytes:
        self._answer.take(chunk)
        told = b"" if self.head else self._open()
        for choice in choices_of(chunk):
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else None
            if isinstance(text, str) and text:
                self._pieces.append(text)
                told += self._in_part("response.output_text.delta", delta=text, logprobs=[])
        return told

    def _open(self) -> bytes:
        item = self._answer.message(None, "in_progress")
        return (
            self._told("response.created", "in_progress", [])
            + self._told("response.in_progress", "in_progress", [])
            + self._event("response.output_item.added", output_index=0, item=item)
            + self._in_part("response.content_part.added", part=text_part(""))
        )

    def _close(self) -> bytes:
        if self._is_closed:
            return b""
        self._is_closed = True
        told, text = b"" if self.head else self._open(), self.text
        status = "incomplete" if self._answer.is_cut_short else "completed"
        item = self._answer.message(text, status)
        return (
            told
            + self._in_part("response.output_text.done", text=text, logprobs=[])
            + self._in_part("response.content_part.done", part=text_part(text))
            + self._event("response.output_item.done", output_index=0, item=item)
            + self._told(f"response.{status}", status, [item])
        )

    def _told(self, kind: str, status: str, output: list[Json]) -> bytes:
        self.head = self._answer.json(status, output)
        return self._event(kind, response=self.head)

    def _in_part(self, kind: str, **said: object) -> bytes:
        return self._event(kind, item_id=self._answer.item_id, output_index=0, content_index=0, **said)

    def _event(self, kind: str, **said: object) -> bytes:
        number, self.number = self.number, self.number + 1
        return typed_event({"type": kind, "sequence_number": number, **said})
