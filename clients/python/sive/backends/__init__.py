"""Backends: what can answer. Each translates an OpenAI request to wire requests; a small file a kind."""

from collections.abc import Callable, Generator, Mapping
from typing import Literal, Protocol

from sive.frozen import frozen
from sive.protocol import Endpoint, Json
from sive.wires import WireRequest

WireName = Literal["http", "local"]
Resume = Literal["tokens", "text", "none"]
Probe = Literal["token", "passive"]
Translate = Callable[[bytes], bytes]
"""From a backend's bytes to OpenAI's server-sent events."""


@frozen
class Request:
    """An OpenAI request on its way to one rung: its model name, system prompt and fields are the rung's.

    ``choices``: how many answers it asks for. ``raw``: the body as bytes, where somebody has them.
    """

    endpoint: Endpoint
    body: Json
    stream: bool
    headers: dict[str, str]
    choices: int = 1
    raw: bytes | None = None


@frozen
class Reply:
    """The head of a backend's reply, and its body when the flow asked for it."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


Flow = Generator[WireRequest, Reply, Translate | None]
"""Wire requests out, replies in; the reply to the last one is the answer. Returns how to read that one,
None when it speaks OpenAI already."""


class Backend(Protocol):
    """Something that can answer.

    ``known_fields``: the request fields it understands, None for all. ``context_tokens``: how much it can
    read, None when unknown. ``is_local``: runs in this process; it may drop the oldest turns.
    ``resume``: how it can carry an answer on, None while that is to be learned. ``probe``: may it be asked
    for a token to see whether it lives? ``position_seeds``: the noise of a seed depends on the position
    alone, so that a sampled answer can be carried on too. ``endpoints``: what it has beside chat completions
    and completions, None while that is to be learned.
    """

    @property
    def name(self) -> str:
        """What callers see; never a URL."""

    @property
    def wire(self) -> WireName:
        """Which wire carries its requests."""

    @property
    def known_fields(self) -> frozenset[str] | None:
        """The request fields it understands."""

    @property
    def context_tokens(self) -> int | None:
        """How many tokens it can read and write together."""

    @property
    def is_local(self) -> bool:
        """Is it the CPU model of this process?"""

    @property
    def resume(self) -> Resume | None:
        """How it can carry an answer on."""

    @property
    def probe(self) -> Probe:
        """May it be asked for a token to see whether it lives?"""

    @property
    def max_in_flight(self) -> int | None:
        """How many requests it may run at once."""

    @property
    def position_seeds(self) -> bool:
        """Does it draw a seed's noise by position?"""

    @property
    def endpoints(self) -> frozenset[Endpoint] | None:
        """What it has beside chat completions and completions."""

    def flow(self, request: Request) -> Flow:
        """The wire requests that fetch one answer."""

    def models_request(self) -> WireRequest | None:
        """What lists its models; None where nothing does."""
