"""Whatever speaks OpenAI's protocol: a vLLM engine, another sive, a hosted API, the CPU model's wire."""

from dataclasses import dataclass, field

from pydantic import SecretStr

from sive.backends import Flow, Probe, Request, Resume, WireName
from sive.protocol import JSON_HEADERS, dumps
from sive.wires import WireRequest

OPENAI_FIELDS = frozenset(
    {
        "audio",
        "best_of",
        "echo",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "modalities",
        "model",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt",
        "reasoning_effort",
        "response_format",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "suffix",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    }
)
"""Request fields that OpenAI documents for chat completions and completions."""

LOCAL_FIELDS = frozenset(
    {
        "add_generation_prompt",
        "continue_final_message",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "n",
        "prompt",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "user",
    }
)
"""Request fields that the CPU model honours (``user`` means nothing to it and loses nothing; CTranslate2
cannot seed one request)."""

LOCAL_CHOICES = 4
"""As many as the CPU model gives, one after the other; a larger ``n`` is dropped as an unknown field is."""


@dataclass(frozen=True, slots=True)
class OpenAIBackend:
    """A backend that needs no translation. ``url`` ends in ``/v1`` or whatever stands in its place.

    ``query``: sent along with every request.
    """

    name: str
    url: str
    api_key: SecretStr | None = None
    known_fields: frozenset[str] | None = None
    context_tokens: int | None = None
    wire: WireName = "http"
    is_local: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    resume: Resume | None = None
    probe: Probe = "passive"
    max_in_flight: int | None = None
    position_seeds: bool = False

    def flow(self, request: Request) -> Flow:
        """One POST; the reply is the answer."""
        headers = JSON_HEADERS | self._headers() | request.headers
        body = dumps(request.body) if request.raw is None else request.raw
        yield WireRequest("POST", self._url(request.endpoint), headers, body)
        return None

    def models_request(self) -> WireRequest | None:
        """``GET /models``."""
        return None if self.is_local else WireRequest("GET", self._url("models"), self._headers())

    def _url(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}" + (f"?{self.query}" if self.query else "")

    def _headers(self) -> dict[str, str]:
        # A compressed stream would be held back until a block is full.
        headers = {"accept-encoding": "identity", **self.headers}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        return headers
