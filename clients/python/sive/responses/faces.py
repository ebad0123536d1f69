"""The faces of a request for a response: who has the endpoint passes through, what chats is translated."""

from sive.calls import Call
from sive.events import Command, End
from sive.faces import WholeFace, labelled_answer, reply
from sive.failures import failure_body, failure_events
from sive.protocol import Json
from sive.relay import Label, Relay
from sive.responses.answer import ResponseAnswer
from sive.responses.events import ResponseEvents
from sive.through_faces import ThroughStreamFace, whole_through
from sive.typed_relay import TypedRelay


class ResponseStreamFace(ThroughStreamFace):
    """The events of a response, whichever kind of stream they come from."""

    def __init__(self, asked: Call) -> None:
        super().__init__(asked.endpoint)
        self._events = ResponseEvents(asked.body)

    def begin(self, relay: Relay, headers: dict[str, str]) -> list[Command]:
        """The head, once; chunks of a chat become events on their way."""
        if not isinstance(relay, TypedRelay):
            relay.rewrites = self._events.feed
        return super().begin(relay, headers)

    def end(self, rest: bytes, headers: dict[str, str]) -> list[Command]:
        """The last events."""
        return [End(self._events.feed(rest) if self._relay is None else rest)]

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """As its base, with the text so far."""
        if self._relay is not None or not self._has_begun:
            return super().error(status, payload, headers)
        head, number = self._events.so_far(), self._events.number
        return [End(failure_events("responses", status, payload, head, number))]


class ResponseWholeFace(WholeFace):
    """One response object, made of a chat completion where its backend knows no other."""

    def __init__(self, call: Call, asked: Call) -> None:
        super().__init__(call)
        self._asked = asked

    def end(self, rest: bytes, headers: dict[str, str]) -> list[Command]:
        """The answer as one object."""
        self._answer.append(rest)
        return reply(200, self._response(self._answer.json()), headers)

    def whole(
        self, body: bytes, label: Label, headers: dict[str, str], *, strips_ids: bool = False
    ) -> tuple[list[Command], Json | None]:
        """The backend's response, or its chat completion as one."""
        try:
            return whole_through("responses", body, label, headers)
        except ValueError:
            answer, usage = labelled_answer(body, label, strips_ids=strips_ids)
        return reply(200, self._response(answer), headers), usage

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """An honest status."""
        return reply(status, failure_body("responses", status, payload), headers)

    def _response(self, chat: Json) -> Json:
        """A chat completion as a response.

        Raises:
            ValueError: it has another shape than OpenAI's.
        """
        response = ResponseAnswer(self._asked.body)
        response.take(chat)
        message = chat["choices"][0].get("message")
        if not isinstance(message, dict):
            raise ValueError("a choice without a message")
        content = message.get("content")
        return response.whole(content if isinstance(content, str) else "")
