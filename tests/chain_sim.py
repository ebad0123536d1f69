"""Hosts on paper: each says a text token by token as vLLM would, and breaks off as hosts do; no sockets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, cycle
from typing import Any, Literal

from sive.backends import Request

from tests.chain_play import DONE, Json, Play, event

PROMPT = [11, 12, 13, 14, 15]
"""The ids of the caller's own prompt, whatever it is."""
END = 99
_SAID = 10_000_000
_numbers = count()
DEFAULT_MAX_TOKENS = 16
"""What vLLM makes of a completion without ``max_tokens``, and of one where it is null."""

Kind = Literal[
    "fine",
    "eof",
    "reset",
    "stall",
    "abort",
    "error",
    "bare_done",
    "nonsense",
    "no_done",
    "hangs",
    "error_at_end",
    "refused",
    "busy",
]


class WrongPromptError(AssertionError):
    """A host was asked to go on from what nobody said."""


def _span(one: int) -> tuple[int, int]:
    """The bytes of an answer that a token stands for."""
    return divmod(one % _SAID, 1000)


@dataclass(frozen=True)
class Host:
    """Says ``text``, always the same. Tokens of ``sizes`` bytes, in turn, ``step`` of them in a chunk.

    ``gives_ids``: it knows ``return_token_ids``. ``continues``: it knows a prefilled answer.
    ``prefilled``: what it says when the prefilled answer begins so.
    """

    text: str
    sizes: tuple[int, ...] = (2, 1, 3)
    step: int = 1
    gives_ids: bool = True
    continues: bool = True
    prefilled: str = ""
    _base: int = _SAID

    def events(self, request: Request) -> list[bytes]:
        """The stream it answers with, without the end mark."""
        return [event(payload) for payload in self.payloads(request.endpoint, request.body)]

    def payloads(self, endpoint: str, body: Json) -> list[Json]:
        """The chunks of its answer."""
        if self.prefilled and self._is_begun_by_another(body):
            another = replace(self, text=self.prefilled, prefilled="", _base=2 * _SAID)
            return another.payloads(endpoint, body)
        prompt, said, torn = self._prompt(body)
        tokens = self._tokens(len(said))
        limit = _max_tokens(endpoint, body)
        is_cut_off = limit is not None and len(tokens) > limit
        tokens = tokens[:limit]
        writer = _Writer(endpoint, prompt if self.gives_ids and body.get("return_token_ids") else None)
        text = _Text(_stops(body), before="hi" + said.decode("utf-8", "ignore") if torn else "", raw=torn)
        chunks = [writer.role()] if endpoint == "chat/completions" else []
        generated, part, shown = 0, list[int](), ""
        for one in tokens:
            generated += 1
            is_last = generated == len(tokens)
            piece, stop = text.feed(self._bytes([one]), is_last=is_last)
            part, shown = [*part, one], shown + piece
            is_over = stop is not None or is_last
            if is_over or len(part) == self.step:
                ending = "length" if is_cut_off and stop is None else "stop"
                chunks.append(writer.said(part, shown, ending if is_over else None, stop))
                part, shown = [], ""
            if is_over:
                break
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append(writer.usage(len(prompt), generated))
        return chunks

    def _is_begun_by_another(self, body: Json) -> bool:
        if isinstance(prompt := body.get("prompt"), list):
            return max(prompt) >= 2 * _SAID
        return not self.text.startswith(self._prefilled(body))

    def _prompt(self, body: Json) -> tuple[list[int], bytes, bytes]:
        """The prompt's ids, the part of the answer that is in it, and the torn character at its end."""
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            said = self._decoded(prompt)
            torn = said[len(said.decode("utf-8", "ignore").encode()) :]
            return prompt, said, torn
        said = self._prefilled(body).encode()
        if not self.text.encode().startswith(said):
            raise WrongPromptError(f"{said!r} is not how {self.text!r} begins")
        ids = [self._token(at, min(at + 2, len(said))) for at in range(0, len(said), 2)]
        return [*PROMPT, *ids], said, b""

    def _prefilled(self, body: Json) -> str:
        if isinstance(body.get("prompt"), str):
            return str(body["prompt"]).removeprefix("hi")
        if not body.get("continue_final_message"):
            return ""
        assert body["add_generation_prompt"] is False
        return str(body["messages"][-1]["content"])

    def _decoded(self, prompt: list[int]) -> bytes:
        at = 0
        if prompt[: len(PROMPT)] != PROMPT:
            raise WrongPromptError(f"{prompt} is not the prompt")
        for one in prompt[len(PROMPT) :]:
            start, end = _span(one)
            if start != at or end > len(self.text.encode()):
                raise WrongPromptError(f"{prompt} is not what was said")
            at = end
        return self.text.encode()[:at]

    def _tokens(self, start: int) -> list[int]:
        ids, at, whole = [], 0, len(self.text.encode())
        for size in cycle(self.sizes):
            if at >= whole:
                return [*ids, END]
            end = min(at + size, whole)
            if end > start:
                ids.append(self._token(max(at, start), end))
            at = end
        raise AssertionError

    def _token(self, start: int, end: int) -> int:
        return self._base + 1000 * start + end

    def _bytes(self, ids: Sequence[int]) -> bytes:
        raw = self.text.encode()
        return b"".join(raw[slice(*_span(one))] for one in ids if one != END)


@dataclass
class _Text:
    """Whole characters only, and as much held back as the longest stop string needs."""

    stops: tuple[str, ...]
    before: str = ""
    raw: bytes = b""
    sent: int = 0

    def feed(self, raw: bytes, *, is_last: bool) -> tuple[str, str | None]:
        self.raw += raw
        said = self.raw.decode("utf-8", "ignore")
        if len(said.encode()) < len(self.raw) and not is_last:
            return "", None  # a token that ends inside a character gives no text at all
        text = self.before + said if said else ""  # vLLM's own slip: the prompt comes back
        ends = [(text.find(stop) + len(stop), stop) for stop in self.stops if stop in text]
        if ends:
            end = min(ends)[0]
            stop = max((one for at, one in ends if at == end), key=len)
            shown = text[self.sent : end - len(stop)]
            return shown, stop
        held = 0 if is_last else max(map(len, self.stops), default=1) - 1
        until = max(self.sent, len(text) - held)
        shown, self.sent = text[self.sent : until], until
        return shown, None


@dataclass
class _Writer:
    """Chunks as vLLM spells them; ``prompt``: its ids, when they are wanted."""

    endpoint: str
    prompt: list[int] | None
    _id: str = field(default_factory=lambda: f"up-{next(_numbers)}")
    _is_first: bool = True

    def _chunk(self, *choices: Json) -> Json:
        is_chat = self.endpoint == "chat/completions"
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        return {"id": self._id, "object": kind, "created": 5, "model": "up", "choices": [*choices]}

    def role(self) -> Json:
        delta = {"role": "assistant", "content": ""}
        chunk = self._chunk({"index": 0, "delta": delta, "logprobs": None, "finish_reason": None})
        return chunk | ({"prompt_token_ids": self.prompt} if self.prompt is not None else {})

    def said(self, ids: list[int], text: str, reason: str | None, stop: str | None) -> Json:
        said: Json = {"text": text} if self.endpoint == "completions" else {"delta": {"content": text}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason, "stop_reason": stop}
        if self.prompt is not None:
            choice["token_ids"] = ids
            if self.endpoint == "completions" and self._is_first:
                choice["prompt_token_ids"] = self.prompt
        self._is_first = False
        return self._chunk(choice)

    def usage(self, prompt: int, generated: int) -> Json:
        counted = {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
        }
        return self._chunk() | {"usage": counted}


def _stops(body: Json) -> tuple[str, ...]:
    stop = body.get("stop") or ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _max_tokens(endpoint: str, body: Json) -> int | None:
    asked: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    if asked is None and endpoint == "completions":
        return DEFAULT_MAX_TOKENS
    return asked


@dataclass(frozen=True)
class Fate:
    """What becomes of one request: ``kind``, and how far it gets, in bytes or events as the kind has it."""

    kind: Kind = "fine"
    at: int = 0


FINE = Fate()


@dataclass(frozen=True)
class Line:
    """How bytes travel: in pieces of ``sizes`` bytes, in turn; with ``end`` as line end, comments between."""

    sizes: tuple[int, ...] = (10_000,)
    end: bytes = b"\n"
    comments: bool = False

    def carries(self, events: list[bytes]) -> bytes:
        """The events as they are spelled on this line."""
        spelled = [b": ping\n\n" + one if self.comments else one for one in events]
        return b"".join(spelled).replace(b"\n", self.end)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The bytes as they arrive."""
        sizes = cycle(self.sizes)
        while data:
            size = next(sizes)
            yield data[:size]
            data = data[size:]


@dataclass
class Stage:
    """Hosts by name, each with the fates of its requests in order; after those all is fine."""

    hosts: dict[str, Host]
    fates: dict[str, list[Fate]] = field(default_factory=dict)
    line: Line = Line()

    def plays(self, play: Play) -> Play:
        """Let it happen, to the end."""
        served: set[int] = set()
        for _ in range(500):
            if play.is_over:
                return play
            waiting = [one for one in play.opens if one.id in play.open_now - served]
            if not waiting:
                play.alarm()
            for one in waiting:
                served.add(one.id)
                name = one.rung.backend.name
                fates = self.fates.get(name) or [FINE]
                fate = fates.pop(0) if self.fates.get(name) else FINE
                self._serve(play, one.id, self.hosts[name], one.request, fate)
        raise AssertionError("it does not end")

    def _serve(self, play: Play, number: int, host: Host, request: Request, fate: Fate) -> None:
        if fate.kind == "refused":
            play.loses(number, "refused")
            return
        if fate.kind == "busy":
            play.replies(number, 503)
            return
        if not host.continues and request.body.get("continue_final_message"):
            play.replies(number, 400)
            return
        data = self.line.carries(_fated(host.events(request), fate))
        if fate.kind in ("eof", "reset", "stall"):
            data = data[: fate.at % (len(data) + 1)]
        play.streams(number, *self.line.pieces(data))
        if fate.kind not in ("stall", "hangs") and number in play.open_now:
            play.loses(number, "reset" if fate.kind == "reset" else "eof")


def _fated(events: list[bytes], fate: Fate) -> list[bytes]:
    at = fate.at % (len(events) + 1)
    match fate.kind:
        case "abort":
            choice: Json = {"index": 0, "delta": {}, "text": "", "finish_reason": "abort"}
            return [*events[:at], event({"id": "up", "choices": [choice]}), DONE]
        case "error":
            return [*events[:at], event({"error": {"message": "EngineCore died", "code": 500}}), DONE]
        case "bare_done":
            return [*events[:at], DONE]
        case "nonsense":
            return [*events[:at], b'data: {"id": "x", "choices": [{"delta": \n\n', *events[at:], DONE]
        case "no_done" | "hangs":
            return events
        case "error_at_end":
            return [*events, event({"error": {"message": "EngineCore died", "code": 500}})]
        case _:
            return [*events, DONE]


def choice_of(payload: Json) -> Json:
    """The one choice of a chunk; empty for the usage chunk."""
    choices: list[Any] = payload["choices"]
    return choices[0] if choices else {}
