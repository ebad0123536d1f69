"""Backends: what can answer. Each translates an OpenAI request to wire requests; a small file a kind."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from pydantic import SecretStr

from sive.frozen import frozen
from sive.protocol import Endpoint, Json
from sive.wires import WireRequest

WireName = Literal["http", "local"]
Resume = Literal["tokens", "text", "none"]
Probe = Literal["token", "passive"]
Translate = Callable[[bytes], bytes]
"""From a backend's bytes to OpenAI's server-sent events. May raise UnavailableError."""


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


Flow = Generator[WireRequest, Reply, Translate | Reply | None]
"""Wire requests out, replies in; the reply to the last one is the answer. Returns how to read that one,
None when it speaks OpenAI already, or the answer itself where no reply is one. A flow that learns why there
is none raises UnavailableError."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Something that can answer. ``name`` is what callers see; never a URL.

    ``known_fields``: the request fields it understands, None for all. ``context_tokens``: how much it can
    read, None when unknown. ``is_local``: runs in this process; it may drop the oldest turns.
    ``resume``: how it can carry an answer on, None while that is to be learned. ``probe``: may it be asked
    for a token to see whether it lives? ``position_seeds``: the noise of a seed depends on the position
    alone, so that a sampled answer can be carried on too. ``tools``: it can call them. ``adapters``: it
    serves LoRA adapters by name. ``quota``: it runs out of credit or of GPU minutes. ``streams``: it answers
    piece by piece; else its one piece is made a stream of. ``first_token_s``: how long it may take to begin,
    where that is another time than others have. ``headers``: sent with every request. ``endpoints``: what it
    has beside chat completions and completions, None while that is to be learned.
    """

    name: str
    _: KW_ONLY
    api_key: SecretStr | None = None
    known_fields: frozenset[str] | None = None
    context_tokens: int | None = None
    wire: WireName = "http"
    is_local: bool = False
    resume: Resume | None = None
    probe: Probe = "passive"
    max_in_flight: int | None = None
    position_seeds: bool = False
    tools: bool = True
    adapters: bool = True
    quota: bool = False
    streams: bool = True
    first_token_s: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    endpoints: frozenset[Endpoint] | None = None

    def flow(self, request: Request) -> Flow:
        """The wire requests that fetch one answer."""
        raise NotImplementedError

    def models_request(self) -> WireRequest | None:
        """What lists its models; None where nothing does."""
        return None

    def own_headers(self) -> dict[str, str]:
        """What every request to it carries."""
        # A compressed stream would be held back until a block is full.
        return {"accept-encoding": "identity", **self.headers, **self.authorization()}

    def authorization(self) -> dict[str, str]:
        """The header that shows its key, to its own host alone."""
        if self.api_key is None:
            return {}
        return {"authorization": f"Bearer {self.api_key.get_secret_value()}"}
