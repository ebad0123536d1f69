"""Dataclasses that nobody changes, at the price of ones that anybody may."""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def frozen(cls: type[T]) -> type[T]:
    """A frozen dataclass with slots, frozen by the type checker alone.

    A dozen of them are made for each request, and ``frozen=True`` sets every field by a call: 4 us of the
    115 us that a request takes.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
