"""Hosts that speak OpenAI's protocol, as a few lines of data each."""

from dataclasses import dataclass
from typing import Literal

from sive.backends import Probe, Resume
from sive.protocol import Endpoint


@dataclass(frozen=True, slots=True)
class Preset:
    """``url``: where its API is, None when the configuration says. ``fields``: what it understands.

    ``probe``, ``resume``, ``endpoints``: as in the configuration; who bills or sleeps is not asked for fun.
    """

    url: str | None = None
    fields: Literal["all", "openai"] = "all"
    probe: Probe = "token"
    resume: Resume | None = None
    endpoints: frozenset[Endpoint] | None = None


PRESETS = {
    "openai": Preset(),
    "hf": Preset("https://router.huggingface.co/v1", "openai", "passive", "none", frozenset({"responses"})),
}
"""By ``kind``. ``hf`` is Hugging Face's Inference Providers router."""
