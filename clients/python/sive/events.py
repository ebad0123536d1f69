"""What passes between a chain, which decides, and a driver, which does: commands out, events in."""

from collections.abc import Mapping

from sive.backends import Request
from sive.errors import UnavailableError, Why
from sive.frozen import frozen
from sive.protocol import Json
from sive.relay import Happening
from sive.relay import Relay as AnyRelay
from sive.routes import Rung


@frozen
class Open:
    """Start an attempt; several may be open at once."""

    id: int
    rung: Rung
    request: Request


@frozen
class Close:
    """Abort an attempt; its later events are dropped."""

    id: int


@frozen
class Relay:
    """This attempt has won: pass its bytes, those that are held too, through ``relay`` to the caller."""

    id: int
    relay: AnyRelay


@frozen
class Begin:
    """Answer the caller's request; exactly once."""

    status: int
    headers: dict[str, str]


@frozen
class Send:
    """Bytes for the caller."""

    data: bytes


@frozen
class End:
    """The answer is complete; nothing follows ``data``."""

    data: bytes = b""


Command = Open | Close | Relay | Begin | Send | End


@frozen
class Step:
    """Run the commands in order, then wait for one event, or send Alarm at ``until`` (None: no alarm)."""

    do: tuple[Command, ...]
    until: float | None = None


@frozen
class First:
    """The first chunk that says something (``chunk``), or an in-band error where it should be."""

    chunk: Json


@frozen
class Whole:
    """The whole body of an answer in one piece, or of an error."""

    body: bytes


@frozen
class Waiting:
    """It took the request, and what its silence from now on would mean."""

    what: str


@frozen
class Unavailable:
    """The backend cannot answer, in words of ours."""

    error: UnavailableError


@frozen
class Head:
    """A status and headers arrived; a 200 head is not yet an answer."""

    id: int
    at: float
    status: int
    headers: Mapping[str, str]


@frozen
class Event:
    """Something that changes state: the first token, a whole body, finish, an in-band error."""

    id: int
    at: float
    event: First | Whole | Waiting | Unavailable | Happening


@frozen
class Lost:
    """An attempt is over without its end."""

    id: int
    at: float
    why: Why


@frozen
class Alarm:
    """The time that the last step named has come."""

    at: float


@frozen
class CallerLeft:
    """The caller closed the connection."""

    at: float


@frozen
class Cancelled:
    """Somebody who may end the request wants it ended: its caller by another way, or a server that stops."""

    at: float
    status: int
    message: str
    code: str


Incoming = Head | Event | Lost | Alarm | CallerLeft | Cancelled
