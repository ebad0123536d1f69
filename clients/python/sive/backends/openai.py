"""Whatever speaks OpenAI's protocol: a vLLM engine, another sive, a hosted API, the CPU model's wire."""

from dataclasses import dataclass

from sive.backends import Backend, Flow, Request
from sive.backends.pieces import as_stream
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


TOOL_FIELDS = frozenset({"function_call", "functions", "parallel_tool_calls", "tool_choice", "tools"})
"""Request fields that mean nothing to a backend without tools."""


STREAM_FIELDS = frozenset({"stream", "stream_options"})


@dataclass(frozen=True, slots=True)
class OpenAIBackend(Backend):
    """A backend that needs no translation. ``url`` ends in ``/v1`` or whatever stands in its place.

    ``query``: sent along with every request.
    """

    url: str
    query: str = ""

    def flow(self, request: Request) -> Flow:
        """One POST; the reply is the answer, or, where it comes in one piece, what that says as a stream."""
        headers = JSON_HEADERS | self.own_headers() | request.headers
        one_piece = request.stream and not self.streams
        reply = yield WireRequest(
            "POST", self._url(request.endpoint), headers, self._body(request), reads_body=one_piece
        )
        return as_stream(reply) if one_piece else None

    def models_request(self) -> WireRequest | None:
        """``GET /models``."""
        return None if self.is_local else WireRequest("GET", self._url("models"), self.own_headers())

    def _body(self, request: Request) -> bytes:
        if request.raw is not None:
            return request.raw
        if self.streams:
            return dumps(request.body)
        kept = {name: value for name, value in request.body.items() if name not in STREAM_FIELDS}
        return dumps(kept)

    def _url(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}" + (f"?{self.query}" if self.query else "")
