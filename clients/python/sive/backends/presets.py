"""Hosts that speak OpenAI's protocol, as a few lines of data each."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Preset:
    """``url``: where its API is, None when the configuration says. ``fields``: what it understands."""

    url: str | None = None
    fields: Literal["all", "openai"] = "all"


PRESETS = {
    "openai": Preset(),
    "hf": Preset("https://router.huggingface.co/v1", "openai"),
}
"""By ``kind``. ``hf`` is Hugging Face's Inference Providers router."""
