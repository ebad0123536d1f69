"""What the gateway needs of a request, whoever brings it: a hot path's HTTP, or one of our own faces."""

from typing import Protocol

from sive.drive import Caller, Driver
from sive.protocol import Endpoint
from sive.routes import Model

from sive_serve.direct import Direct


class Exchange(Caller, Protocol):
    """One request and its answer; the gateway fills in ``request_id``, ``model`` and ``driver``.

    ``headers``: the caller's, by lower-case name. ``has_begun``: was the head of an answer given?
    """

    endpoint: Endpoint
    headers: dict[str, str]
    request_id: str
    model: Model | None
    driver: Direct | Driver | None
    has_begun: bool

    def end_early(self, *, status: int, message: str, code: str) -> None:
        """End the request from outside; the caller is told."""

    def abort(self) -> None:
        """The caller left, or never reads: what waits for it is dropped."""

    def cut(self) -> None:
        """End in the middle: the caller sees that it was no clean end."""
