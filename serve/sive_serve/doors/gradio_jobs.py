"""Calls that are being answered, and the streams that read them: bounded in number, bytes and time."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sive.errors import RequestError

from sive_serve.doors.answers import Answer
from sive_serve.doors.gradio_turn import Turn
from sive_serve.gateway import OWN_FAULT

log = logging.getLogger(__name__)

MAX_JOBS = 1_000
MAX_BYTES = 64_000_000
"""Of all calls' arguments together: a history is kept to be given back."""

UNREAD_S = 60.0
"""A call whose answer nobody came to read by then is forgotten."""

Session = tuple[str, str]
"""A client's session hash, which may be easy to guess, and who the client is (``Access.caller``).

A reader who is nobody in particular, the empty one, gets as far as here only where no key is needed; older
clients bring theirs to the call and none to the stream.
"""


@dataclass(frozen=True, slots=True)
class Started:
    """Somebody reads it now."""


@dataclass(frozen=True, slots=True)
class Grown:
    """More was said: ``text`` is all of it so far."""

    more: str
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """``text`` is all that will be said."""

    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Nobody could answer, or go on."""

    problem: RequestError


Update = Started | Grown | Done | Failed


class Job:
    """One call under way."""

    def __init__(self, event_id: str, session: Session, turn: Turn, answer: Answer, *, size: int) -> None:
        self.event_id = event_id
        self.session = session
        self.turn = turn
        self.answer = answer
        self.size = size
        self._is_cancelled = False

    def cancel(self) -> None:
        """End it with what is said so far."""
        self._is_cancelled = True
        self.answer.cancel()

    async def updates(self) -> AsyncIterator[Update]:
        """What becomes of it; the last one is Done or Failed."""
        text = ""
        yield Started()
        try:
            async for more in self.answer.texts():
                if more:
                    text += more
                    yield Grown(more, text)
        except RequestError as problem:
            yield Done(text) if self._is_cancelled else Failed(problem)
        else:
            yield Done(text)


class Stream:
    """Reads jobs for one client; as long as that one does not read on, nor does it."""

    def __init__(self) -> None:
        self.jobs: set[Job] = set()
        self._waiting: asyncio.Queue[tuple[Job, Update]] = asyncio.Queue(maxsize=1)
        self._readers: set[asyncio.Task[None]] = set()

    @property
    def is_over(self) -> bool:
        """Is there nothing more to come?"""
        return not self.jobs

    def add(self, job: Job) -> None:
        """Read this one too."""
        self.jobs.add(job)
        task = asyncio.create_task(self._read(job))
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)

    async def next(self, within_s: float) -> tuple[Job, Update] | None:
        """What happened next; None when nothing did in this time."""
        try:
            async with asyncio.timeout(within_s):
                job, update = await self._waiting.get()
        except TimeoutError:
            return None
        if isinstance(update, Done | Failed):
            self.jobs.discard(job)
        return job, update

    def close(self) -> None:
        """The client is gone, or has everything."""
        for task in self._readers:
            task.cancel()

    async def _read(self, job: Job) -> None:
        try:
            async for update in job.updates():
                await self._waiting.put((job, update))
        except Exception:  # the outermost frame of a task: whoever reads must not wait for ever
            log.exception("call %s failed", job.event_id)
            problem = RequestError(OWN_FAULT, status=500, type="server_error")
            await self._waiting.put((job, Failed(problem)))


class Jobs:
    """All calls that are not over: each waits to be read, or a stream reads it."""

    def __init__(
        self, *, max_jobs: int = MAX_JOBS, max_bytes: int = MAX_BYTES, unread_s: float = UNREAD_S
    ) -> None:
        self._max_jobs, self._max_bytes, self._unread_s = max_jobs, max_bytes, unread_s
        self._jobs: dict[str, Job] = {}
        self._unread: dict[str, asyncio.TimerHandle] = {}
        self._streams: dict[Session, Stream] = {}

    def check_room(self, size: int, caller: str) -> None:
        """Refuse a call that there is no room for: nobody may hold more than is left for the others.

        So one caller gets half of the room, two get a third each, and a newcomer always finds some.

        Raises:
            RequestError: 503, which Gradio's clients know as a queue that is full.
        """
        sizes = [job.size for job in self._jobs.values()]
        own = [job.size for job in self._jobs.values() if caller and job.session[1] == caller]
        left, left_bytes = self._max_jobs - len(sizes), self._max_bytes - sum(sizes)
        if len(own) >= left or sum(own) + size > left_bytes:
            message = "too many calls wait to be read: read or cancel those that were made"
            raise RequestError(message, status=503, type="server_error", code="queue_full")

    def add(self, job: Job) -> None:
        """A call is under way; its session's stream reads it when there is one."""
        self._jobs[job.event_id] = job
        session_hash, _ = job.session
        stream = self._streams.get(job.session) or self._streams.get((session_hash, ""))
        if stream is not None:
            stream.add(job)
        else:
            loop = asyncio.get_running_loop()
            self._unread[job.event_id] = loop.call_later(self._unread_s, self._forget, job)

    def find(self, event_id: str) -> Job | None:
        """The call with this id, read or not."""
        return self._jobs.get(event_id)

    def read_one(self, event_id: str, caller: str) -> Job | None:
        """Take a call out of those that wait, for somebody who reads it alone."""
        job = self._jobs.get(event_id)
        if job is None or event_id not in self._unread or not _may_read(job, caller):
            return None
        self._take(job)
        return job

    def read_session(self, session: Session) -> Stream | None:
        """A stream of all calls of a session that wait, and of those to come; None when none waits."""
        session_hash, caller = session
        unread = [self._jobs[event_id] for event_id in self._unread]
        jobs = [job for job in unread if job.session[0] == session_hash and _may_read(job, caller)]
        if not jobs:
            return None
        stream = self._streams[session] = Stream()
        for job in jobs:
            self._take(job)
            stream.add(job)
        return stream

    def close(self, stream: Stream, session: Session | None = None) -> None:
        """A stream has ended; calls that it has not read to their end are not wanted any more."""
        if session is not None and self._streams.get(session) is stream:
            del self._streams[session]
        stream.close()
        for job in stream.jobs:
            self.over(job)

    def over(self, job: Job) -> None:
        """It was answered, or nobody reads it any more."""
        self._jobs.pop(job.event_id, None)
        job.answer.leave()

    def _take(self, job: Job) -> None:
        self._unread.pop(job.event_id).cancel()

    def _forget(self, job: Job) -> None:
        self._unread.pop(job.event_id, None)
        self.over(job)


def _may_read(job: Job, caller: str) -> bool:
    return caller in ("", job.session[1])
