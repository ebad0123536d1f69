"""A chain on a fake clock, without sockets: what it is told, what it does, what its caller hears."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from sive import sse
from sive.backends import Request
from sive.backends.openai import LOCAL_FIELDS, OpenAIBackend
from sive.calls import Call, parse
from sive.chain import Chain
from sive.chunks import has_token, is_error
from sive.errors import Why
from sive.events import (
    Alarm,
    Begin,
    CallerLeft,
    Cancelled,
    Close,
    Command,
    End,
    Event,
    First,
    Head,
    Incoming,
    Lost,
    Open,
    Relay,
    Send,
    Step,
    Whole,
)
from sive.faces import StreamFace, WholeFace
from sive.health import Health
from sive.policy import Clocks, Policy
from sive.protocol import Endpoint, dumps, loads
from sive.relay import FailedInBand, Finished
from sive.relay import Relay as AnyRelay
from sive.routes import Model, Rest, Rung

Json = dict[str, Any]

CLOCKS = Clocks(deadline_s=120, head_s=5, first_token_s=10, stall_s=8)
BACKOFF_S = 0.25
"""The longest, as ``policy()`` draws it."""
TOKEN: Json = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
ANSWER: Json = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}
DONE = b"data: [DONE]\n\n"

_OF_BACKENDS = {one.name for one in fields(OpenAIBackend)}


def rung(name: str, **options: Any) -> Rung:
    """A rung that speaks OpenAI; options of its backend and its own."""
    of_backend = {key: options.pop(key) for key in _OF_BACKENDS if key in options}
    return Rung(
        OpenAIBackend(name, "http://x/v1", **of_backend),
        options.pop("model", f"{name}-model"),
        "test",
        **options,
    )


def twins(*names: str, **options: Any) -> list[Rung]:
    """Rungs of equal weights that give token ids."""
    return [rung(name, weights="w", **({"resume": "tokens"} | options)) for name in names]


def cpu(**options: Any) -> Rung:
    """The CPU model as a fallback."""
    backend = OpenAIBackend(
        "local",
        "local:/v1",
        known_fields=LOCAL_FIELDS,
        context_tokens=512,
        wire="local",
        is_local=True,
        resume="text",
    )
    return Rung(backend, "sive-embedded", "test", is_degraded=True, **options)


def call(endpoint: Endpoint = "chat/completions", **body: Any) -> Call:
    """A caller's request."""
    headers = {"x-request-id": "r1"}
    if body.pop("require", False):
        headers["x-sive-require"] = "adapter"
    asks: Json = {"messages": [{"role": "user", "content": "hi"}]}
    if endpoint == "completions":
        asks = {"prompt": "hi"}
    return parse(endpoint, dumps({"model": "spinoza"} | asks | body), headers)


def policy(clocks: Clocks = CLOCKS, *, strict: bool = False) -> Policy:
    """The policy, without chance."""
    return Policy(clocks, strict=strict, uniform=lambda least, most: most)


def chunk(text: str = "", finish: str | None = None, *, ids: list[int] | None = None, **more: Any) -> bytes:
    """One event of a chat stream."""
    choice: Json = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = ids
    return event({"id": "up", "created": 7, "model": "theirs", "choices": [choice], **more})


def role(**more: Any) -> bytes:
    """The first event of a chat stream."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return event({"id": "up", "created": 7, "model": "theirs", "choices": [choice], **more})


def completion(text: str = "", finish: str | None = None, *, ids: list[int] | None = None) -> bytes:
    """One event of a completions stream."""
    choice = {"index": 0, "text": text, "finish_reason": finish, "token_ids": ids}
    return event({"id": "other", "created": 8, "model": "theirs", "choices": [choice]})


def event(payload: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(payload) + b"\n\n"


def payloads(data: bytes) -> list[Json]:
    """What the caller's SDK would parse."""
    read = [sse.read(one) for one in sse.split(data)]
    return [one.json() for one in read if one is not None and not one.is_done]


def text_of(data: bytes) -> str:
    """The text that a stream shows."""
    choices = [choice for payload in payloads(data) for choice in payload.get("choices") or ()]
    return "".join(
        (choice.get("delta") or {}).get("content") or choice.get("text") or "" for choice in choices
    )


@dataclass(slots=True)
class _Stream:
    """What the driver keeps of an attempt: the bytes up to the first token, then the relay."""

    splitter: sse.Splitter = field(default_factory=sse.Splitter)
    held: bytes = b""
    relay: AnyRelay | None = None


class Play:
    """A chain, a clock, and all that the caller and the driver were told."""

    def __init__(
        self,
        *rungs: Rung,
        asked: Call | None = None,
        strict: bool = False,
        clocks: Clocks = CLOCKS,
        rests: dict[tuple[str, str], Rest] | None = None,
        health: Health | None = None,
        now: float = 0.0,
        **model: Any,
    ) -> None:
        self.call = asked or call(stream=True)
        self.now = now
        self.health = health or Health(policy(clocks), rests=lambda: rests or {})
        face = StreamFace() if self.call.stream else WholeFace(self.call)
        self.chain = Chain(
            self.call,
            Model("spinoza", rungs, **model),
            face,
            policy(clocks, strict=strict),
            health=self.health,
            now=now,
        )
        self.done: list[Command] = []
        self.heard = b""
        self.until: float | None = None
        self._streams: dict[int, _Stream] = {}
        self._take(self.chain.start())

    def _take(self, step: Step) -> list[Command]:
        self.done += step.do
        self.until = step.until
        for command in step.do:
            match command:
                case Open():
                    self._streams[command.id] = _Stream()
                case Close():
                    self._streams.pop(command.id, None)
                case Relay():
                    self._streams[command.id].relay = command.relay
                case Send() | End():
                    self.heard += command.data
        return list(step.do)

    # What happens

    def send(self, incoming: Incoming) -> list[Command]:
        """Let something happen; what the chain does about it."""
        self.now = incoming.at
        return self._take(self.chain.send(incoming))

    def alarm(self) -> list[Command]:
        """Let the time come that the chain asked for."""
        assert self.until is not None
        return self.send(Alarm(self.until))

    def passes(self, seconds: float) -> None:
        """Let time pass, with all alarms that the chain asked for."""
        end = self.now + seconds
        while self.until is not None and self.until <= end:
            self.alarm()
        self.now = end

    def begins(self, number: int, first: Json = TOKEN) -> list[Command]:
        """Attempt ``number`` gives a head and a first token; the relay is not fed."""
        self.send(Head(number, self.now, 200, SSE))
        return self.send(Event(number, self.now, First(first)))

    def replies(
        self, number: int, status: int, body: bytes = b'{"error":{"message":"no"}}', **headers: str
    ) -> list[Command]:
        """Attempt ``number`` gives a whole reply."""
        named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
        self.send(Head(number, self.now, status, named))
        commands = self.send(Event(number, self.now, Whole(body)))
        self._streams.pop(number, None)
        return commands

    def loses(self, number: int, why: Why = "eof") -> list[Command]:
        """Attempt ``number`` is lost."""
        commands = self.send(Lost(number, self.now, why))
        self._streams.pop(number, None)
        return commands

    def streams(self, number: int, *events: bytes) -> None:
        """Attempt ``number`` answers 200 and streams these bytes."""
        self.send(Head(number, self.now, 200, SSE))
        self.reads(number, events)

    def reads(self, number: int, pieces: Iterable[bytes]) -> None:
        """Bytes of attempt ``number`` arrive; they go the way they go in the driver."""
        for raw in pieces:
            stream = self._streams.get(number)
            if stream is None:
                return
            if stream.relay is None:
                stream.held += raw
                first = _first_said(stream.splitter.feed(raw))
                if first is None:
                    continue
                self.send(Event(number, self.now, First(first)))
                raw = stream.held
            self._feed(number, stream.relay, raw)

    def _feed(self, number: int, relay: AnyRelay | None, raw: bytes) -> None:
        if relay is None:
            return
        self.heard += relay.feed(raw, self.now)
        happening = relay.take()
        if happening is None:
            return
        if isinstance(happening, Finished | FailedInBand) and number in self._streams:
            self._streams[number].relay = None  # nothing more is fed
        self.send(Event(number, self.now, happening))

    def leaves(self) -> list[Command]:
        """The caller closes the connection."""
        return self.send(CallerLeft(self.now))

    def cancel(self) -> list[Command]:
        """The request is ended from outside."""
        return self.send(Cancelled(self.now, 499, "cancelled", "request_cancelled"))

    # What it did

    @property
    def opens(self) -> list[Open]:
        """The attempts, in order."""
        return [command for command in self.done if isinstance(command, Open)]

    @property
    def opened(self) -> list[str]:
        """Backends that were asked, in order."""
        return [command.rung.backend.name for command in self.opens]

    @property
    def asked(self) -> Request:
        """The request of the attempt that was opened last."""
        return self.opens[-1].request

    @property
    def open_now(self) -> set[int]:
        """Attempts that are neither closed nor over."""
        return set(self._streams)

    @property
    def relay(self) -> AnyRelay:
        """The relay that won last."""
        return [command.relay for command in self.done if isinstance(command, Relay)][-1]

    @property
    def begun(self) -> Begin:
        """The head the caller got; exactly one."""
        (begin,) = [command for command in self.done if isinstance(command, Begin)]
        return begin

    @property
    def error(self) -> Json:
        """The error the caller got, as the last thing."""
        last = self.heard.rstrip(b"\n").rpartition(b"\n\n")[2]
        error: Json = loads(last.removeprefix(b"data: "))["error"]
        return error

    @property
    def is_over(self) -> bool:
        """Is there nothing to wait for?"""
        return self.until is None

    def adds_up(self) -> bool:
        """Was every cut mended, or told, exactly once; and does nothing run any more?"""
        report = self.chain.report
        mended = sum(outcome == "ok" for _, outcome in report.resumes)
        is_counted = len(report.cuts) == mended + report.is_broken_off
        return is_counted and not any(self.health.in_flight().values())


def _first_said(whole: bytes) -> Json | None:
    for one in sse.split(whole):
        try:
            data = sse.read(one)
            payload = data.json() if data is not None and not data.is_done else {}
            if is_error(payload) or has_token(payload):
                return payload
        except ValueError:
            continue
    return None
