"""The relay of a stream whose events have types: OpenAI's responses, Anthropic's messages."""

from sive.chunks import ENDS, is_error
from sive.protocol import Json, dumps
from sive.relay import ERROR_IN_BAND, FailedInBand, Finishing, Label, Relay

LIFE_SIGN = "ping"
"""Says that the host lives, not that it works on the answer."""


class TypedRelay(Relay):
    """Passes events on as they came, but for those that name the model.

    ``head``: the response or message as its last event told it; ``sequence_number``: the last one.
    """

    def __init__(self, label: Label) -> None:
        super().__init__(label, wants_usage=True)
        self.head: Json = {}
        self.sequence_number = -1

    def finish(self) -> bytes:
        """Nothing: the last event is the end."""
        return b""

    def _done(self) -> bytes:
        """An end mark of another protocol, which some hosts add."""
        if not self.is_finished:
            super()._done()
        return b""

    def _chunk(self, raw: bytes, chunk: Json) -> bytes:
        if is_error(chunk):
            self._happening = FailedInBand(ERROR_IN_BAND)
            return b""
        kind = chunk.get("type")
        self.chunks += kind != LIFE_SIGN
        self.sequence_number = _number(chunk.get("sequence_number"), self.sequence_number)
        self._count(chunk.get("usage"))
        if kind in ENDS:
            self._finished.add(0)
            self._happening = Finishing()
        head = chunk.get("response") or chunk.get("message")
        if not isinstance(head, dict):
            return raw
        self._count(head.get("usage"))
        self.head = labelled(head, self._label)
        return typed_event(chunk)

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.usage = (self.usage or {}) | counted(usage)


def typed_event(payload: Json) -> bytes:
    """One server-sent event under its type's name."""
    return b"event: %b\ndata: %b\n\n" % (str(payload.get("type")).encode(), dumps(payload))


def labelled(head: Json, label: Label) -> Json:
    """An answer, or the object that stands for it in an event, with who speaks; written into it."""
    theirs = head.get("sive")
    head["sive"] = label.merged(theirs)
    if label.model is not None:
        head["model"] = label.model
    return head


def counted(usage: Json) -> Json:
    """A usage in the words of chat completions; what it does not say is left out."""
    words = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
    return {words.get(name, name): value for name, value in usage.items() if isinstance(value, int)}


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
