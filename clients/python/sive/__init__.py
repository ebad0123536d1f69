"""sive: one OpenAI-compatible endpoint that always answers, and says honestly who is speaking.

``from sive import OpenAI, AsyncOpenAI`` are drop-ins for the SDK's clients.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sive.client import AsyncOpenAI, OpenAI

__all__ = ["AsyncOpenAI", "OpenAI", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The SDK takes half a second to import; the gateway, which shares this package, never needs it.
    if name in ("AsyncOpenAI", "OpenAI"):
        from sive import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
