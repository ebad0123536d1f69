"""Many hosts on one event loop, each on a port of its own."""

import contextlib
import socket
import ssl
from typing import Self

from tests.lab.upstream import LAB, Loop, Manner, Upstream
from tests.lab.voice import Voice


class Hosts:
    """A context manager; ``add`` gives a host that answers at once, all of them are dropped at the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start the loop."""
        self._loop = self._stack.enter_context(Loop())
        return self

    def __exit__(self, *exc: object) -> None:
        """Drop all connections."""
        self._stack.close()

    def add(self, manner: Manner, voice: Voice = LAB, tls: ssl.SSLContext | None = None) -> Upstream:
        """A host on a port of its own."""
        return self._stack.enter_context(Upstream(manner, voice=voice, loop=self._loop, tls=tls))


def refused_url() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
