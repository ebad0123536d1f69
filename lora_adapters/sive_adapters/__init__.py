"""The adapters that are wanted: read from ``adapters.toml`` and checked before anything serves them."""

from sive_adapters.adapters import Adapter, read_adapters

__all__ = ["Adapter", "read_adapters"]
