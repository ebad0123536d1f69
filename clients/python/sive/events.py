"""What passes between a chain, which decides, and a driver, which does: commands out, events in."""

from collections.abc import Mapping
from dataclasses import dataclass

from sive.backends import Request
from sive.errors import Why
from sive.protocol import Json
from sive.relay import Happening
from sive.relay import Relay as AnyRelay
from sive.routes import Rung


@dataclass(frozen=True, slots=True)
class Open:
    """Start an attempt; several may be open at once."""

    id: int
    rung: Rung
    request: Request


@dataclass(frozen=True, slots=True)
class Close:
    """Abort an attempt; its later events are dropped."""

    id: int


@dataclass(frozen=True, slots=True)
class Relay:
    """This attempt has won: pass its bytes, those that are held too, through ``relay`` to the caller."""

    id: int
    relay: AnyRelay


@dataclass(frozen=True, slots=True)
class Begin:
    """Answer the caller's request; exactly once."""

    status: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes for the caller."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete; nothing follows ``data``."""

    data: bytes = b""


Command = Open | Close | Relay | Begin | Send | End


@dataclass(frozen=True, slots=True)
class Step:
    """Run the commands in order, then wait for one event, or send Alarm at ``until`` (None: no alarm)."""

    do: tuple[Command, ...]
    until: float | None = None


@dataclass(frozen=True, slots=True)
class First:
    """The first chunk that says something (``chunk``), or an in-band error where it should be."""

    chunk: Json


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole body of an answer in one piece, or of an error."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """A status and headers arrived; a 200 head is not yet an answer."""

    id: int
    at: float
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that changes state: the first token, a whole body, finish, an in-band error."""

    id: int
    at: float
    event: First | Whole | Happening


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt is over without its end."""

    id: int
    at: float
    why: Why


@dataclass(frozen=True, slots=True)
class Alarm:
    """The time that the last step named has come."""

    at: float


@dataclass(frozen=True, slots=True)
class CallerLeft:
    """The caller closed the connection."""

    at: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody who may end the request wants it ended: its caller by another way, or a server that stops."""

    at: float
    status: int
    message: str
    code: str


Incoming = Head | Event | Lost | Alarm | CallerLeft | Cancelled
