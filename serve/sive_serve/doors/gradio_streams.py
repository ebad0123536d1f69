"""What Gradio's clients read: the streams of a call and of a session, paced by how much they repeat."""

import asyncio
from collections.abc import AsyncIterator

from sive.protocol import Json

from sive_serve.doors import gradio_messages as messages
from sive_serve.doors.gradio_jobs import Done, Failed, Grown, Job, Jobs, Session, Started, Stream

HEARTBEAT_S = 15.0
"""Gradio's own."""

MIN_GAP_S = 0.02
"""Between two events of one answer; what comes meanwhile goes together."""

MAX_REPEATED_BYTES_PER_S = 2_000_000
"""Each event repeats the history, and a call's own stream also all that was said."""


async def call_events(stream: Stream, jobs: Jobs) -> AsyncIterator[bytes]:
    """Of one call: each time all that is said so far."""
    while not stream.is_over:
        match await stream.next(HEARTBEAT_S):
            case (job, Grown(_, text)):
                event = messages.event("generating", job.turn.outputs(text))
                yield event
                await asyncio.sleep(_gap_s(event))
            case (job, Done(text)):
                jobs.over(job)
                yield messages.event("complete", job.turn.outputs(text))
            case (job, Failed(problem)):
                jobs.over(job)
                yield messages.event("error", messages.failure(problem))
            case None:
                yield messages.event("heartbeat", None)


async def session_events(stream: Stream, jobs: Jobs, session: Session) -> AsyncIterator[bytes]:
    """Of all calls of a session: what changes, until there is none any more."""
    while not stream.is_over:
        match await stream.next(HEARTBEAT_S):
            case (job, Started()):
                yield messages.starts(job.event_id)
            case (job, Grown(more, text)):
                is_first = more == text
                data = job.turn.outputs(text) if is_first else job.turn.edits(more, text)
                event = messages.generating(job.event_id, data, _speaker(job))
                yield event
                await asyncio.sleep(_gap_s(event))
            case (job, Done(text)):
                jobs.over(job)
                yield messages.completed(job.event_id, job.turn.outputs(text), _speaker(job))
            case (job, Failed(problem)):
                jobs.over(job)
                yield messages.failed(job.event_id, problem)
            case None:
                yield messages.message("heartbeat")
    jobs.close(stream, session)
    yield messages.message("close_stream")


def _gap_s(event: bytes) -> float:
    return max(MIN_GAP_S, len(event) / MAX_REPEATED_BYTES_PER_S)


def _speaker(job: Job) -> Json:
    return {"backend": job.answer.backend, "degraded": job.answer.is_degraded}
