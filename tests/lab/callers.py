"""A caller in this process: asks rungs over real sockets, and hears what becomes of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sive.backends.openai import OpenAIBackend
from sive.routes import Rung

from tests.conftest import until
from tests.lab.upstream import Upstream

T = TypeVar("T")


class Listener:
    """Hears one answer; ``breaks``: it cannot even take the head."""

    is_slow = False

    def __init__(self, *, breaks: Exception | None = None) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.heard = b""
        self._breaks = breaks

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """The head."""
        if self._breaks is not None:
            raise self._breaks
        self.status, self.headers = status, headers

    def send(self, data: bytes) -> None:
        """Some of the body."""
        self.heard += data

    def end(self, data: bytes) -> None:
        """The rest of it."""
        self.heard += data


def rung_of(name: str, host: Upstream, *, model: str = "lab", **of_backend: object) -> Rung:
    """A rung that asks this host."""
    return Rung(OpenAIBackend(name, host.url, **of_backend), model, "test")  # type: ignore[arg-type]


def on_a_loop(work: Callable[[], Awaitable[T]], seconds: float = 20) -> T:
    """Do it; on asyncio's own event loop, as uvloop's does not close while a connection was left open."""

    async def main() -> T:
        async with asyncio.timeout(seconds):
            return await work()

    return asyncio.run(main())


async def seen(is_so: Callable[[], object], what: str = "it") -> None:
    """Wait for something observable, while the loop runs on."""
    await asyncio.to_thread(until, is_so, what=what)
