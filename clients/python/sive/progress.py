"""How far a request is: what every part of its chain sees, and how it waits, ends and is told the time."""

from collections.abc import Generator

from sive.attempts import Attempts
from sive.calls import Call
from sive.events import Alarm, CallerLeft, Cancelled, Command, Event, Head, Incoming, Lost, Step
from sive.faces import Face
from sive.health import Health
from sive.policy import Policy
from sive.protocol import Json
from sive.report import Report
from sive.routes import Model, Rung
from sive.words import Told, Words

Wait = Generator[Step, Incoming, Incoming]


class CallerIsGoneError(Exception):
    """The caller left: everything open is closed and nothing more is said."""


class CancelledError(Exception):
    """The request is ended from outside: everything open is closed and the caller is told."""

    def __init__(self, why: Cancelled) -> None:
        super().__init__(why.message)
        self.why = why


class Progress:
    """A request on its way. ``now``: the time of the last event; ``deadline``: when somebody must speak.

    ``do``: the commands of the step that is being made. ``is_relaying``: an answer flows, so no heartbeat
    is needed. ``is_over``: the caller has the end, or an error.
    """

    def __init__(
        self,
        call: Call,
        model: Model,
        face: Face,
        policy: Policy,
        *,
        health: Health,
        now: float,
        is_probe: bool,
    ) -> None:
        self.call = call
        self.model = model
        self.face = face
        self.policy = policy
        self.health = health
        self.now = now
        self.is_probe = is_probe
        self.deadline = now + policy.clocks.deadline_s
        self.report = Report(call, started_at=now)
        self.do: list[Command] = []
        self.attempts = Attempts(call, policy, health, self.report, self.do, is_probe=is_probe)
        self.words = Words(call, model, policy, self.report)
        self.is_relaying = False
        self.is_over = False
        self._beat_at = now + policy.clocks.head_s

    @property
    def may_go_on(self) -> bool:
        """Is there time to ask anybody?"""
        return self.now < self.deadline

    def wait(self, until: float) -> Wait:
        """Yield what is to be done until an event comes that is not the heartbeat's.

        Raises:
            CallerIsGoneError, CancelledError: instead of that event.
        """
        while True:
            do = tuple(self.do)
            self.do.clear()
            beats = not self.is_relaying
            incoming = yield Step(do, min(until, self._beat_at) if beats else until)
            self.now = incoming.at
            if isinstance(incoming, CallerLeft):
                raise CallerIsGoneError
            if isinstance(incoming, Cancelled):
                raise CancelledError(incoming)
            if isinstance(incoming, Head | Event | Lost) and self.attempts.of(incoming) is None:
                continue  # of an attempt that is over
            if not (isinstance(incoming, Alarm) and beats and incoming.at < until):
                return incoming
            self.put_off_heartbeat()
            self.do += self.face.heartbeat(self.words.headers(None), self._whats_up())

    def pause(self, seconds: float) -> Generator[Step, Incoming, None]:
        """Let so much time go by."""
        until = self.now + seconds
        while self.now < until:
            yield from self.wait(until)

    def put_off_heartbeat(self) -> None:
        """The caller has just heard something."""
        self._beat_at = self.now + self.policy.clocks.head_s

    def say(self, rung: Rung | None, told: Told) -> None:
        """An error is the request's end."""
        status, payload, headers = told
        self.do += self.face.error(status, payload, self.words.headers(rung) | headers)
        self.is_over = True
        self.report.status = status
        if rung is not None:
            self.report.backend, self.report.is_degraded = rung.backend.name, rung.is_degraded

    def complete(self, usage: Json | None) -> None:
        """The caller has the whole answer."""
        self.is_over = True
        self.report.usage = usage
        self.report.is_complete = True

    def _whats_up(self) -> str:
        """Why the voice that is wanted is not the one that is waited for, or what that one waits for."""
        for attempt in self.attempts:
            if attempt.waits_for:
                return f"{attempt.rung.backend.name}: {attempt.waits_for}"
        rests = ((rung, self.health.own_rest(rung)) for rung in self.model.rungs)
        return next((f"{rung.backend.name}: {rest.why}" for rung, rest in rests if rest is not None), "")
