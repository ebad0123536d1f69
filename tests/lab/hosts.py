"""Many hosts on one port, told apart by the first part of the path: each has its manner, voice and log."""

from dataclasses import dataclass, field
from typing import Self

from tests.lab.upstream import Exchange, Manner, Seen, Upstream
from tests.lab.voice import Voice


@dataclass(slots=True)
class Host:
    """One of them. ``seen`` logs its requests, ``manner`` may be changed at any time."""

    name: str
    url: str
    manner: Manner
    voice: Voice
    seen: list[Seen] = field(default_factory=list)


class Hosts:
    """A context manager; ``add`` gives a host that answers at once."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._upstream = Upstream(self._answer)

    def __enter__(self) -> Self:
        """Start to serve."""
        self._upstream.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        """Drop all connections."""
        self._upstream.__exit__(*exc)

    def add(self, name: str, manner: Manner, voice: Voice) -> Host:
        """A host of its own name."""
        url = f"http://127.0.0.1:{self._upstream.port}/{name}/v1"
        host = self._hosts[name] = Host(name, url, manner, voice)
        return host

    async def _answer(self, exchange: Exchange) -> None:
        host = self._hosts[exchange.seen.path.split("/")[1]]
        exchange.voice, exchange.number = host.voice, len(host.seen)
        host.seen.append(exchange.seen)
        await host.manner(exchange)
