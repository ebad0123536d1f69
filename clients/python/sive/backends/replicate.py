"""Replicate: a prediction is created, its events are read; when nobody does any more it is cancelled."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from sive import sse
from sive.backends import Backend, Flow, Reply, Request
from sive.backends.conversation import SAMPLING_FIELDS, TEXT_FIELDS, Conversation, conversation
from sive.backends.pieces import TextChunks, as_one
from sive.backends.refusals import judged
from sive.errors import LostError, UnavailableError
from sive.protocol import JSON_HEADERS, SSE_HEADERS, Json, dumps, loads
from sive.wires import WireRequest

REPLICATE_FIELDS = TEXT_FIELDS | {*SAMPLING_FIELDS, "max_completion_tokens"}
"""Request fields that language models there take as inputs."""

WAIT_S = 60
"""How long it is waited for an answer in one piece; Replicate allows no more."""

BOOT_REST_S = 30.0
"""A model that has to be started is not asked again before."""

HOSTS = (".replicate.com", ".replicate.net")
"""Its own: events come from another of its hosts than predictions are created at."""

Template = Literal["inputs", "chatml", "messages"]
"""``inputs``: ``prompt`` and ``system_prompt``, which the model puts into its own template. ``chatml``: all
in one prompt as Qwen reads it. ``messages``: as OpenAI's."""

_ENDED = {
    "failed": "the prediction failed",
    "canceled": "the prediction was cancelled",
    "aborted": "the prediction was given up before it began",
    "error": "the prediction failed",
}


@dataclass(frozen=True, slots=True)
class ReplicateBackend(Backend):
    """A deployment, a version, or else the model that the rung names.

    ``inputs``: constants for the model. ``template``: how a conversation becomes inputs.
    """

    url: str
    deployment: str | None = None
    version: str | None = None
    inputs: Json = field(default_factory=dict)
    template: Template = "inputs"

    def flow(self, request: Request) -> Flow:
        """Create it; read its events, or, where it gives none, its answer."""
        said = conversation(request.body)
        inputs, dropped = inputs_of(said, self.template)
        created = yield self._create(said.model, self.inputs | inputs)
        prediction = _json(created)
        if prediction is None:
            return judged(created, REFUSED)
        chunks = TextChunks(request.endpoint, said.model, dropped)
        if self.streams and prediction.get("status") in ("starting", "processing"):
            try:
                url = self._stream_url(prediction)
            except UnavailableError:
                yield self._cancel(prediction)
                raise
            headers = self.own_headers() | {"accept": "text/event-stream"}
            farewell = self._cancel(prediction)
            reply = yield WireRequest(
                "GET", url, headers, reads_body=not request.stream, farewell=farewell, waits_for=BOOT
            )
            reading = Reading(chunks)
            if judged(reply).status != 200 or request.stream:
                return reading
            return as_one(request.endpoint, reading(reply.body))
        text = yield from self._output(prediction)
        chunks.add(text)
        chunks.end()
        events = chunks.take()
        return Reply(200, SSE_HEADERS, events) if request.stream else as_one(request.endpoint, events)

    def _create(self, model: str, inputs: Json) -> WireRequest:
        body: Json = {"input": inputs, "stream": self.streams}
        if self.deployment is not None:
            path = f"deployments/{quote(self.deployment)}/predictions"
        elif self.version is not None:
            path, body = "predictions", body | {"version": self.version}
        else:
            path = f"models/{quote(model)}/predictions"
        headers = JSON_HEADERS | self.own_headers() | ({} if self.streams else {"prefer": f"wait={WAIT_S}"})
        return WireRequest("POST", f"{self._base}/v1/{path}", headers, dumps(body), reads_body=True)

    def _cancel(self, prediction: Json) -> WireRequest:
        path = f"/v1/predictions/{quote(str(prediction.get('id')), safe='')}/cancel"
        return WireRequest("POST", self._base + path, self.own_headers(), reads_body=True)

    def _stream_url(self, prediction: Json) -> str:
        """Where its events are.

        Raises:
            UnavailableError: nowhere, or at a host that must not see our key.
        """
        urls = prediction.get("urls")
        url = urls.get("stream") if isinstance(urls, dict) else None
        if not isinstance(url, str):
            message = "the model gives no events: say streaming = false in its [[backend]]"
            raise UnavailableError("no_stream", message, needs_owner=True, of_model=True)
        ours, theirs = urlsplit(self._base), urlsplit(url)
        is_family = (ours.hostname or "").endswith(HOSTS) and (theirs.hostname or "").endswith(HOSTS)
        if theirs.scheme != ours.scheme or not (theirs.netloc == ours.netloc or is_family):
            message = "its events are at another host, which must not see its key"
            raise UnavailableError("foreign_host", message, needs_owner=True)
        return url

    def _output(self, prediction: Json) -> Generator[WireRequest, Reply, str]:
        """The text of a prediction that has ended; one that has not is cancelled.

        Raises:
            UnavailableError: it did not succeed.
        """
        status, output = str(prediction.get("status")), prediction.get("output")
        if status == "succeeded":
            return _text(output)
        if status in _ENDED:
            raise UnavailableError(f"prediction_{status}", _ENDED[status])
        yield self._cancel(prediction)
        if status == "starting":
            raise UnavailableError("cold_boot", BOOT, rest_s=BOOT_REST_S, of_model=True)
        raise UnavailableError("too_slow", f"the prediction did not end within {WAIT_S} s")

    @property
    def _base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")


BOOT = "its model starts (a cold boot)"
REFUSED = "it refused the prediction: does the model take these inputs?"


class Reading:
    """Reads the events of one prediction."""

    def __init__(self, chunks: TextChunks) -> None:
        self._chunks = chunks
        self._splitter = sse.Splitter()

    def __call__(self, raw: bytes) -> bytes:
        """OpenAI's events for these bytes.

        Raises:
            UnavailableError: it failed before it said anything.
            LostError: an event that is too large, or that cannot be read.
        """
        try:
            events = [sse.read(one) for one in sse.split(self._splitter.feed(raw))]
        except ValueError as exc:
            raise LostError("malformed", str(exc)) from exc
        for data in events:
            if data is not None:
                self._event(data)
        return self._chunks.take()

    def _event(self, data: sse.Data) -> None:
        match data.name:
            case "output":
                self._chunks.add(data.text)
            case "error":
                self._chunks.fail(UnavailableError("prediction_failed", _ENDED["failed"]))
            case "done":
                reason = _reason(data)
                if reason is None:
                    self._chunks.end()
                else:
                    said = _ENDED.get(reason, _ENDED["failed"])
                    self._chunks.fail(UnavailableError("prediction_ended", said))


def inputs_of(said: Conversation, template: Template) -> tuple[Json, list[str]]:
    """A conversation as a model's inputs, and the names of what has no input."""
    inputs = {name: value for name, value in said.sampling.items() if name != "stop"}
    dropped = set(said.lost if template == "chatml" else said.lost_with_prefill)
    stops = said.sampling.get("stop") or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    if any("," in stop for stop in stops):  # the inputs have them in one text, between commas
        dropped.add("stop")
        stops = []
    if template == "messages":
        system = [("system", said.system)] if said.system else []
        turns = [*system, *said.turns, ("user", said.message)]
        inputs["messages"] = [{"role": role, "content": text} for role, text in turns]
    elif template == "chatml":
        inputs["prompt"] = _chatml(said)
        stops = [*stops, "<|im_end|>"]
    else:
        inputs["prompt"] = _transcript(said)
        inputs |= {"system_prompt": said.system} if said.system else {}
    if stops:
        inputs["stop_sequences"] = ",".join(stops)
    return inputs, sorted(dropped)


def _chatml(said: Conversation) -> str:
    system = [("system", said.system)] if said.system else []
    turns = [*system, *said.turns, ("user", said.message)]
    before = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{before}<|im_start|>assistant\n{said.prefill}"


def _transcript(said: Conversation) -> str:
    """One question as it is; a conversation with its speakers named."""
    if not said.turns:
        return said.message
    turns = "".join(
        f"{role.capitalize()}: {text}\n\n" for role, text in [*said.turns, ("user", said.message)]
    )
    return f"{turns}Assistant:"


def _text(output: Any) -> str:
    """A text, or its pieces.

    Raises:
        UnavailableError: it is neither.
    """
    pieces = output if isinstance(output, list) else [output]
    if not all(isinstance(piece, str) for piece in pieces):
        raise UnavailableError("no_answer", "the prediction's output is no text", of_model=True)
    return "".join(pieces)


def _json(reply: Reply) -> Json | None:
    try:
        said: Any = loads(reply.body) if reply.status in (200, 201, 202) else None
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _reason(data: sse.Data) -> str | None:
    try:
        reason = data.json().get("reason")
    except ValueError:
        return None
    return str(reason) if reason else None
