"""What hosts with protocols of their own refuse: they saw our call, so it is no fault of the caller's."""

from sive.backends import Reply
from sive.errors import UnavailableError

PLAIN = frozenset({401, 402, 403, 404, 408, 425, 429})
"""Statuses that mean the same however the call is phrased: key, credit, address, haste."""


def judged(reply: Reply, what: str = "it refused the call") -> Reply:
    """A reply to be judged by its status; ``what`` is said of a refusal that is of our call.

    Raises:
        UnavailableError: such a refusal.
    """
    if 400 <= reply.status < 500 and reply.status not in PLAIN:
        raise UnavailableError(f"http_{reply.status}", f"HTTP {reply.status}: {what}")
    return reply
