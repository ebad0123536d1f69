"""The one driver: does what a chain says, and tells it what happened.

Callbacks throughout: a task for the request, one for its attempt and their wake-ups cost more than the rest.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from sive import farewell, sse
from sive.backends import Reply, Translate, WireName
from sive.chain import Chain
from sive.chunks import has_token, is_error
from sive.errors import LostError, UnavailableError
from sive.events import (
    Alarm,
    Begin,
    CallerLeft,
    Cancelled,
    Close,
    Command,
    End,
    Event,
    First,
    Head,
    Incoming,
    Lost,
    Open,
    Relay,
    Send,
    Step,
    Unavailable,
    Waiting,
    Whole,
)
from sive.relay import Happening
from sive.relay import Relay as AnyRelay
from sive.wires import Exchange, Wire, WireRequest

log = logging.getLogger(__name__)

Wires = Mapping[WireName, Wire]
Ended = Callable[[Exception | None], None]


class Caller(Protocol):
    """Who gets the answer. A slow one says so, and calls ``Driver.resume`` when it is not any more."""

    @property
    def is_slow(self) -> bool:
        """Does so much wait to be taken that nothing should follow for now?"""

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """The head; called once, first."""

    def send(self, data: bytes) -> None:
        """Some of the body."""

    def end(self, data: bytes) -> None:
        """The rest of the body."""


class Driver:
    """Runs one chain on the current event loop, from whose thread alone it may be called.

    ``ended`` is called once, with what broke if something did; not after ``close``.
    """

    def __init__(self, chain: Chain, wires: Wires, caller: Caller, *, ended: Ended | None = None) -> None:
        self._chain = chain
        self._wires = wires
        self._caller = caller
        self._ended = ended
        self.limits, self.budget = chain.limits, chain.budget
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Incoming] = deque()
        self._attempts: dict[int, _Attempt] = {}
        self._is_busy = True  # until it is started: what happens before waits
        self._is_over = False
        self._until = self._timer_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take the first step; the rest follows from what happens."""
        self._go_on(None)

    def cancel(self, *, status: int, message: str, code: str) -> None:
        """End the request from outside; its caller is told."""
        self.put(Cancelled(self._loop.time(), status, message, code))

    async def run(self) -> None:
        """Drive the chain to its end; whatever is open then is closed, also when this task is cancelled."""
        over = self._loop.create_future()

        def ended(failure: Exception | None) -> None:
            if not over.done():
                over.set_result(None) if failure is None else over.set_exception(failure)

        self._ended = ended
        self.start()
        try:
            await over
        finally:
            self.close()

    def left(self) -> None:
        """The caller closed the connection."""
        self.put(CallerLeft(self._loop.time()))

    def resume(self) -> None:
        """The caller is not slow any more."""
        for attempt in self._attempts.values():
            attempt.resume()

    def close(self) -> None:
        """Abort whatever is open; nobody is told."""
        self._is_over = True
        self._ended = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._chain.close()
        for attempt in self._attempts.values():
            attempt.close()
        self._attempts.clear()  # they hold this driver in turn

    def put(self, incoming: Incoming) -> None:
        """Something happened."""
        if self._is_busy:
            self._inbox.append(incoming)
        elif not self._is_over:
            self._go_on(incoming)

    def _go_on(self, incoming: Incoming | None) -> None:
        self._is_busy = True
        try:
            step = self._chain.start() if incoming is None else self._chain.send(incoming)
            while self._do(step) and (happened := self._next()) is not None:
                step = self._chain.send(happened)
        except Exception as exc:  # the outermost frame of a request: whoever started it is told
            self._finish(exc)
        else:
            if step.until is None:
                self._finish(None)
            else:
                self._wake_at(step.until)
        finally:
            self._is_busy = False

    def _do(self, step: Step) -> bool:
        """Run a step's commands; False when there is nothing to wait for."""
        for command in step.do:
            self._run_command(command)
        return step.until is not None

    def _run_command(self, command: Command) -> None:
        match command:
            case Open():
                wire = self._wires[command.rung.backend.wire]
                attempt = self._attempts[command.id] = _Attempt(command, self, self._caller, wire)
                attempt.start()
            case Begin():
                self._caller.begin(command.status, command.headers)
            case End():
                self._caller.end(command.data)
            case Relay():
                self._attempts[command.id].relay(command.relay)
            case Close():
                self._attempts.pop(command.id).close()
            case Send():
                self._caller.send(command.data)

    def _next(self) -> Incoming | None:
        """What happened meanwhile, if anything; what closed attempts had to say is nobody's news."""
        while self._inbox:
            incoming = self._inbox.popleft()
            if not isinstance(incoming, Head | Event | Lost) or incoming.id in self._attempts:
                return incoming
        return None

    def _finish(self, failure: Exception | None) -> None:
        ended = self._ended
        self.close()
        if ended is not None:
            ended(failure)

    def _wake_at(self, until: float) -> None:
        """Set the alarm. One that was set for earlier is kept: most steps only put it off."""
        self._until = until
        if self._timer is not None:
            if self._timer_at <= until:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(until, self._alarm), until

    def _alarm(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now < self._until:
            self._wake_at(self._until)
        else:
            self.put(Alarm(now))


class _Attempt:
    """One open attempt: walks the backend's flow, finds the first token, then passes on through the relay."""

    def __init__(self, opened: Open, driver: Driver, caller: Caller, wire: Wire) -> None:
        self._id = opened.id
        self._opened = opened
        self._flow = opened.rung.backend.flow(opened.request)
        self._driver = driver
        self._caller = caller
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._exchange: Exchange | None = None
        self._is_closed = False
        self._is_answer = False
        self._is_stream = False
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._body = bytearray()
        self._held_bytes = 0
        self._take: Callable[[bytes], None] = self._collect
        self._translate: Translate | None = None
        self._splitter: sse.Splitter | None = None
        self._relay: AnyRelay | None = None
        self._failure: LostError | UnavailableError | None = None
        self._farewell: WireRequest | None = None
        self._later: WireRequest | None = None

    # The driver's side

    def start(self) -> None:
        """Send the first request of the backend's flow."""
        try:
            self._ask(next(self._flow))
        except UnavailableError as failure:
            self._fail(failure)
        except Exception:  # a backend's flow may be anybody's: whatever broke, the request must go on
            self._break()

    def relay(self, relay: AnyRelay) -> None:
        """It has won: pass on what is held, and all that follows."""
        self._relay, self._take = relay, self._pass_on
        held = bytes(self._body)
        self._drop_body()
        self._pass_on(held)
        if self._exchange is not None and not relay.is_blocked:
            self._exchange.resume()
        if self._failure is not None:
            self._fail(self._failure)

    def resume(self) -> None:
        """The caller is not slow any more."""
        if self._relay is not None and self._relay.is_blocked and self._exchange is not None:
            self._relay.is_blocked = False
            self._relay.waits_since = self._loop.time()
            self._exchange.resume()

    def close(self) -> None:
        """Abort; the connection closes at once."""
        self._is_closed = True
        self._take = _nowhere  # a method of its own would keep it alive, and the whole request with it
        self._drop_body()
        if self._exchange is not None:
            self._exchange.close()
        if self._farewell is not None and not (self._relay is not None and self._relay.is_finished):
            farewell.say(self._wire, self._farewell)

    # The wire's side

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        """A reply begins: the answer, or to a step towards it."""
        self._status, self._headers = status, headers
        if not self._reads_body:
            self._walk(b"")

    def on_data(self, data: bytes) -> None:
        """Some of its body."""
        if self._is_closed:
            return
        try:
            self._take(data if self._translate is None else self._translate(data))
        except (LostError, UnavailableError) as failure:
            self._fail(failure)
        except Exception:  # as in `start`
            self._break()

    def on_end(self) -> None:
        """The reply is complete."""
        if not self._is_answer:
            self._walk(bytes(self._body))
        if self._is_stream:
            self._fail(LostError("eof"))
        elif self._is_answer:
            if self._status < 400:  # else, or where the flow could not read it, its host may still be at work
                self._farewell = None
            self._tell(Whole(bytes(self._body)))

    def on_lost(self, lost: LostError) -> None:
        """There is no reply, or no more of it."""
        if lost.why == "reset_reused" and self._later is not None:
            request, self._later = self._later, None  # once more: nobody has seen that step of the flow
            self._exchange = self._wire.send(request, self)
        else:
            self._fail(lost)

    # Up to the answer

    def _ask(self, request: WireRequest) -> None:
        self._reads_body, self._farewell = request.reads_body, request.farewell
        if request.waits_for:
            self._tell(Waiting(request.waits_for))
        self._exchange = self._wire.send(request, self)

    def _walk(self, body: bytes) -> None:
        """Let the flow see a reply: it asks for another, or this one is the answer."""
        try:
            request = self._flow.send(Reply(self._status, self._headers, body))
            if self._exchange is not None:
                self._exchange.close()
            self._drop_body()
            self._later = request
            self._ask(request)
        except StopIteration as stop:
            self._begin(stop.value)
        except UnavailableError as failure:
            self._fail(failure)
        except Exception:  # as in `start`
            self._break()

    def _begin(self, how: Translate | Reply | None) -> None:
        self._is_answer = True
        if isinstance(how, Reply):
            self._drop_body()
            self._status, self._headers = how.status, how.headers
        streams = self._headers.get("content-type", "").startswith("text/event-stream")
        if self._opened.request.stream and self._status == 200 and streams:
            self._is_stream = True
            self._translate = None if isinstance(how, Reply) else how
            self._splitter = sse.Splitter()
            self._take = self._look_for_first
        self._driver.put(Head(self._id, self._loop.time(), self._status, self._headers))
        if isinstance(how, Reply):
            self.on_data(how.body)

    def _fail(self, failure: LostError | UnavailableError) -> None:
        if self._is_stream and self._take == self._hold:
            self._failure = failure  # what is held goes first, if this stream wins
        elif isinstance(failure, UnavailableError):
            self._tell(Unavailable(failure))
        elif not self._is_closed:
            self._driver.put(Lost(self._id, self._loop.time(), failure.why))

    def _break(self) -> None:
        log.exception("the attempt on backend %r failed", self._opened.rung.backend.name)
        self._fail(LostError("malformed"))

    # What becomes of the body

    def _collect(self, data: bytes) -> None:
        """Keep it, as part of a reply or of what came before a first token."""
        self._driver.budget.take(len(data))
        self._held_bytes += len(data)
        self._body += data
        if len(self._body) > self._driver.limits.reply_bytes:
            raise LostError("too_large", f"more than {self._driver.limits.reply_bytes} bytes")

    def _drop_body(self) -> None:
        self._driver.budget.give_back(self._held_bytes)
        self._held_bytes = 0
        self._body = bytearray()

    def _look_for_first(self, data: bytes) -> None:
        """Read on to the first event that says something; hold all that came until then."""
        assert self._splitter is not None  # noqa: S101 - set together with this way of taking
        self._collect(data)
        try:
            first = _first_said(self._splitter.feed(data))
        except ValueError as exc:
            raise LostError("malformed", str(exc)) from exc
        if first is not None:
            self._take = self._hold
            self._tell(first)

    def _hold(self, data: bytes) -> None:
        """Another attempt may win: wait for the chain's word."""
        self._collect(data)
        if self._exchange is not None:
            self._exchange.pause()

    def _pass_on(self, data: bytes) -> None:
        assert self._relay is not None  # noqa: S101 - set together with this way of taking
        relay, caller = self._relay, self._caller
        try:
            out = relay.feed(data, self._loop.time())
        except LostError as lost:
            self._fail(lost)
            return
        except ValueError as exc:
            self._fail(LostError("malformed", str(exc)))
            return
        except Exception:  # as in `start`
            self._break()
            return
        if out:
            caller.send(out)
            if caller.is_slow and self._exchange is not None:
                relay.is_blocked = True
                self._exchange.pause()
        if (happening := relay.take()) is not None:
            self._tell(happening)

    def _tell(self, event: First | Whole | Waiting | Unavailable | Happening) -> None:
        if not self._is_closed:
            self._driver.put(Event(self._id, self._loop.time(), event))


def _nowhere(_: bytes) -> None:
    """Bytes after the end."""


def _first_said(whole: bytes) -> First | None:
    for one in sse.split(whole):
        try:
            data = sse.read(one)
            chunk = data.json() if data is not None and not data.is_done else {}
            is_first = is_error(chunk) or has_token(chunk)
        except ValueError:
            continue  # malformed events are skipped; the relay counts them, if this stream wins
        if is_first:
            return First(chunk)
    return None
