"""Hosts as a few lines of data each: where they are, and what they understand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sive.backends import Probe, Resume
from sive.protocol import Endpoint


@dataclass(frozen=True, slots=True)
class Preset:
    """``url``: where its API is, None when the configuration says; ``{endpoint_id}`` is filled from there.

    ``speaks``: what is translated. ``fields``: what it understands; ``openai`` is what OpenAI documents and
    ``knows`` beside it. ``probe``, ``resume``, ``tools``, ``adapters``, ``quota``, ``streams`` and
    ``endpoints``: as in the configuration; who bills or sleeps is not asked for fun. ``headers``: sent along.
    """

    url: str | None = None
    speaks: Literal["openai", "gradio", "replicate", "runpod"] = "openai"
    fields: Literal["all", "openai"] = "all"
    knows: frozenset[str] = frozenset()
    probe: Probe = "passive"
    resume: Resume | None = None
    endpoints: frozenset[Endpoint] | None = None
    tools: bool = True
    adapters: bool = True
    quota: bool = False
    streams: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


SAMPLERS = frozenset({"min_p", "repetition_penalty", "top_k"})
OPENROUTERS_OWN = frozenset({"models", "plugins", "provider", "reasoning", "route", "top_a", "transforms"})
NONE = frozenset[Endpoint]()
RESPONSES = frozenset[Endpoint]({"responses"})

PRESETS = {
    "openai": Preset(probe="token"),
    "hf": Preset(
        "https://router.huggingface.co/v1",
        fields="openai",
        resume="none",
        adapters=False,
        quota=True,
        endpoints=RESPONSES,
    ),
    # A replica that sleeps is waited for as long as a caller is kept waiting; then it says 503, and wakes on.
    "hf-endpoint": Preset(headers={"x-scale-up-timeout": "5"}),
    "together": Preset(
        "https://api.together.xyz/v1", fields="openai", knows=SAMPLERS, resume="none", quota=True
    ),
    "openrouter": Preset(
        "https://openrouter.ai/api/v1",
        fields="openai",
        knows=SAMPLERS | OPENROUTERS_OWN,
        resume="none",
        adapters=False,
        quota=True,
    ),
    "runpod-serverless": Preset("https://api.runpod.ai/v2/{endpoint_id}/openai/v1", quota=True),
    "runpod-lb": Preset("https://{endpoint_id}.api.runpod.ai/v1", quota=True),
    "runpod-queue": Preset(
        "https://api.runpod.ai/v2/{endpoint_id}",
        "runpod",
        resume="none",
        quota=True,
        streams=False,
        endpoints=NONE,
    ),
    "replicate": Preset(
        "https://api.replicate.com",
        "replicate",
        resume="none",
        tools=False,
        adapters=False,
        quota=True,
        endpoints=NONE,
        headers={"cancel-after": "10m"},  # what is left behind costs no more than that
    ),
    "gradio": Preset(None, "gradio", resume="none", tools=False, adapters=False, endpoints=NONE),
}
"""By ``kind``. ``hf`` is Hugging Face's Inference Providers router."""
