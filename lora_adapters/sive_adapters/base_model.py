"""What an adapter must fit: the linear layers of its base model."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model's linear layers: full module name to (in, out) features.

    ``name`` is the hub id or folder it was read from.
    """

    name: str
    modules: Mapping[str, tuple[int, int]]


def read_base_model(model: str, revision: str | None = None) -> BaseModel | None:
    """Return what is known on this machine of a hub id or an absolute folder; None when nothing is."""
    raise NotImplementedError
