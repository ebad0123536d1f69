"""RunPod's own queue: one job, and its answer in one piece."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sive.backends import Backend, Flow, Reply, Request
from sive.backends.pieces import as_stream
from sive.backends.refusals import judged
from sive.chunks import refusal_status
from sive.errors import UnavailableError
from sive.policy import NO_WORKER_WORDS, error_text
from sive.protocol import JSON_HEADERS, Json, dumps, loads
from sive.wires import WireRequest

WAIT_S = 60
START_REST_S = 30.0
"""An endpoint whose workers have to start is not asked again before."""

_STREAM_FIELDS = frozenset({"stream", "stream_options"})


@dataclass(frozen=True, slots=True)
class RunpodQueueBackend(Backend):
    """An endpoint whose worker takes ``openai_route`` and ``openai_input``, as RunPod's for vLLM does."""

    url: str

    def flow(self, request: Request) -> Flow:
        """Wait for the job's answer; one that nobody has begun is cancelled."""
        asked = {name: value for name, value in request.body.items() if name not in _STREAM_FIELDS}
        job = {
            "input": {"openai_route": f"/v1/{request.endpoint}", "openai_input": asked},
            # Whoever leaves cannot be heard of any more: nothing waits or runs for longer than this.
            "policy": {"executionTimeout": 2 * WAIT_S * 1000, "ttl": 3 * WAIT_S * 1000},
        }
        reply = yield self._post(f"runsync?wait={WAIT_S * 1000}", dumps(job))
        said = _object(reply)
        if said is None:
            has_no_worker = any(word in error_text(reply.body) for word in NO_WORKER_WORDS)
            return reply if has_no_worker else judged(reply)
        status = said.get("status")
        if status == "COMPLETED":
            answer = _answer(said.get("output"))
            return (as_stream(answer) or answer) if request.stream else answer
        if status in ("IN_QUEUE", "IN_PROGRESS"):
            yield self._post(f"cancel/{quote(str(said.get('id')), safe='')}", b"")
            if status == "IN_QUEUE":
                message = f"no worker took the job within {WAIT_S} s (a cold start, or none is to be had)"
                raise UnavailableError("cold_start", message, rest_s=START_REST_S)
            raise UnavailableError("too_slow", f"the job did not end within {WAIT_S} s")
        raise UnavailableError("job_failed", f"the job ended as {_word(status)}")

    def _post(self, path: str, body: bytes) -> WireRequest:
        headers = JSON_HEADERS | self.own_headers()
        return WireRequest("POST", f"{self.url.rstrip('/')}/{path}", headers, body, reads_body=True)


def _object(reply: Reply) -> Json | None:
    try:
        said: Any = loads(reply.body) if reply.status == 200 else None
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _answer(output: Any) -> Reply:
    """What the worker answered; one that yields pieces gives a list, here of one.

    A job whose request its worker refused is complete too: what it said has the refusal's status.
    """
    said = output[0] if isinstance(output, list) and len(output) == 1 else output
    if not isinstance(said, dict):
        return Reply(200, JSON_HEADERS, dumps(said))
    if said.get("object") == "error":  # vLLM's error as it was, without a frame
        said = {"error": {name: value for name, value in said.items() if name != "object"}}
    return Reply(refusal_status(said) or 200, JSON_HEADERS, dumps(said))


def _word(status: Any) -> str:
    known = ("FAILED", "CANCELLED", "TIMED_OUT")
    return str(status) if status in known else "something else than COMPLETED"
