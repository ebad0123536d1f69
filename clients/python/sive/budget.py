"""How many bytes one request may hold in memory, over all its attempts."""

from sive.errors import LostError


class Budget:
    """Whoever keeps bytes for a request takes them from here, and gives them back when it drops them."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def take(self, size: int) -> None:
        """Hold so many bytes more.

        Raises:
            LostError: that is more than a request may hold; they are not taken.
        """
        if size > self._left:
            raise LostError("too_large", f"one request may hold {self._limit} bytes")
        self._left -= size

    def has(self, size: int) -> bool:
        """Could so many be taken?"""
        return size <= self._left

    def give_back(self, size: int) -> None:
        """So many are held no more."""
        self._left += size
