"""A Gradio app, a Hugging Face Space above all: a call, then its events."""

import secrets
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from sive.backends import Backend, Flow, Reply, Request, spaces
from sive.backends.conversation import SAMPLING_FIELDS, TEXT_FIELDS, HistoryFormat, conversation
from sive.backends.gradio_events import Reading, last_word
from sive.backends.gradio_function import Function, configured, discovered, in_queue
from sive.backends.pieces import TextChunks, as_one
from sive.backends.refusals import judged
from sive.protocol import JSON_HEADERS, Json, dumps, loads
from sive.wires import WireRequest

GRADIO_FIELDS = TEXT_FIELDS | {*SAMPLING_FIELDS, "max_completion_tokens"}
"""Request fields that a function may have arguments for."""

PREFIXES = ("/gradio_api", "")
"""Where the API of Gradio 5 and later lies, and of those before."""

Asking = Generator[WireRequest, Reply, Reply]


@dataclass(slots=True)
class _Found:
    """What was found out about an app: where its API lies, and what its function takes."""

    prefix: str | None = None
    function: Function | None = None


@dataclass(frozen=True, slots=True)
class GradioBackend(Backend):
    """One function of an app. ``function`` and ``arguments`` are asked of the app where they are None.

    ``prefix``: where its API lies; where that is a 404 the other usual ones are tried. ``space``:
    ``owner/name`` on the Hub, which is asked at ``hub_url`` why the app does not answer.
    """

    url: str
    function: str | None = None
    arguments: tuple[str | Json, ...] | None = None
    history: HistoryFormat | None = None
    prefix: str = PREFIXES[0]
    space: str | None = None
    hub_url: str = spaces.HUB_URL
    found: _Found = field(default_factory=_Found, compare=False, repr=False)

    def flow(self, request: Request) -> Flow:
        """What the function takes, unless that is known; the call; its events."""
        said = conversation(request.body)
        function = yield from self._function()
        if isinstance(function, Reply):
            return function
        values, dropped = function.values(said)
        called = yield from self._call(function, values)
        if isinstance(called, Reply):
            return called
        chunks = TextChunks(request.endpoint, said.model, dropped)
        events = WireRequest("GET", called, self.own_headers(), reads_body=not request.stream)
        reply = yield events
        if reply.status != 200 or not _is_of(reply, "text/event-stream"):
            return (yield from self._why_not(reply))
        reading = Reading(chunks)
        return reading if request.stream else as_one(request.endpoint, reading(last_word(reply.body)))

    # The function

    def _function(self) -> Generator[WireRequest, Reply, Function | Reply]:
        if self.found.function is not None:
            return self.found.function
        if self.function is not None and self.arguments is not None:
            function = configured(self.function, self.arguments, self.history)
        else:
            reply = yield from self._ask("GET", "/info")
            if (info := _json(reply)) is None:
                return (yield from self._why_not(reply))
            function = discovered(info, self.function, self.history)
        if function.needs_queue:
            reply = yield WireRequest("GET", f"{self._base}/config", self.own_headers(), reads_body=True)
            if (config := _json(reply)) is None:
                return (yield from self._why_not(reply))
            function = in_queue(function, config)
        self.found.function = function
        return function

    # The call

    def _call(self, function: Function, values: list[Any]) -> Generator[WireRequest, Reply, str | Reply]:
        """Call it; where its events are, or a reply that says why there are none."""
        path = f"/call/{quote(function.api_name)}"
        body: Json = {"data": values}
        session = secrets.token_hex(8)
        if function.index is not None:
            path = "/queue/join"
            body |= {"fn_index": function.index, "session_hash": session, "simple_format": True}
        reply = yield from self._ask("POST", path, dumps(body))
        event_id = (_json(reply) or {}).get("event_id")
        if not isinstance(event_id, str):
            return (yield from self._why_not(reply))
        prefix = self._base + (self.found.prefix or "")
        if function.index is not None:
            return f"{prefix}/queue/data?session_hash={session}"
        return f"{prefix}{path}/{quote(event_id, safe='')}"

    def _ask(self, method: str, path: str, body: bytes = b"") -> Asking:
        """Ask below the app's prefix, or find out which that is."""
        first: Reply | None = None
        known = self.found.prefix
        for prefix in dict.fromkeys((self._prefix, *PREFIXES)) if known is None else (known,):
            headers = self.own_headers() | (JSON_HEADERS if body else {})
            reply = yield WireRequest(method, self._base + prefix + path, headers, body, reads_body=True)
            if reply.status != 404:
                self.found.prefix = prefix
                return reply
            first = first or reply
        assert first is not None  # noqa: S101 - there is at least one prefix
        return first

    # Why it does not answer

    def _why_not(self, reply: Reply) -> Asking:
        """The reply to judge by its status.

        Raises:
            UnavailableError: there is more to say than that.
        """
        was_known = self.found.function
        self.found.prefix = self.found.function = None
        if (url := spaces.runtime_url(self.space, self._base, self.hub_url)) is not None:
            headers = {"accept-encoding": "identity"} | self.authorization()
            runtime = yield WireRequest("GET", url, headers, reads_body=True)
            if (trouble := spaces.trouble(runtime.status, runtime.body)) is not None:
                raise trouble
        if reply.status in (404, 500) and was_known is not None:
            info = _json((yield from self._ask("GET", "/info")))
            if info is not None:
                discovered(info, was_known.name, self.history)  # raises where there is no such function
        return judged(reply)

    @property
    def _base(self) -> str:
        return self.url.rstrip("/")

    @property
    def _prefix(self) -> str:
        return f"/{self.prefix.strip('/')}" if self.prefix.strip("/") else ""


def _is_of(reply: Reply, kind: str) -> bool:
    return reply.headers.get("content-type", "").startswith(kind)


def _json(reply: Reply) -> Json | None:
    """A good reply's object; None when it is none."""
    try:
        said = loads(reply.body) if reply.status == 200 else None
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
