"""A pod's ``/admin/adapters``, asked by a gateway."""

import asyncio
from typing import Any

import httpx2
from pydantic import SecretStr
from sive import sse
from sive.errors import AdapterError

from sive_serve.pod_adapters import AUTOMATIC, Change, PodState, read_state

ASK_S = 15.0
SILENCE_S = 60.0
"""A change says something every ten seconds."""

CHANGE_S = 3600.0
"""For one change; a download of an hour goes on without us."""

CHANGE_HEADERS = {"accept": "text/event-stream", AUTOMATIC: "1"}

LOOPBACK = ("http://127.", "http://localhost", "http://[::1]")


class AwayError(AdapterError):
    """The pod cannot be asked, or cannot do it now; later it may."""


class KeyRefusedError(AwayError):
    """The pod does not take the admin key."""


class RefusedError(AdapterError):
    """The pod says no to this change, and will until the change or the pod is another."""


class PodAdmin:
    """One pod, called ``name``; ``url`` is its backend's, with or without ``/v1``.

    What is raised never holds the key, whatever the pod answers.
    """

    def __init__(self, name: str, url: str, key: SecretStr) -> None:
        self.name = name
        self._url = f"{url.rstrip('/').removesuffix('/v1')}/admin/adapters"
        self._key = key
        self._http = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {key.get_secret_value()}"},
            timeout=httpx2.Timeout(ASK_S, read=SILENCE_S),
            trust_env=not url.startswith(LOOPBACK),
        )

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def look(self) -> PodState:
        """Return what the pod has.

        Raises:
            AwayError: it cannot be asked.
            AdapterError: it is no sive with adapters.
        """
        try:
            async with asyncio.timeout(ASK_S):
                reply = await self._http.get(self._url)
        except (httpx2.HTTPError, TimeoutError) as exc:
            raise AwayError(f"it cannot be reached ({type(exc).__name__})") from exc
        self._check(reply)
        return read_state(_json(reply))

    async def change(self, change: Change) -> PodState:
        """Ask for a change, wait until it is done, and return what the pod has then.

        Raises:
            AwayError: it cannot be asked, or broke off on the way; it may have been done.
            RefusedError: the pod says why not.
            AdapterError: it is no sive with adapters.
        """
        last: dict[str, Any] = {}
        try:
            async with (
                asyncio.timeout(CHANGE_S),
                self._http.stream("POST", self._url, json=change.body, headers=CHANGE_HEADERS) as reply,
            ):
                if reply.status_code != 200:
                    await reply.aread()
                    self._check(reply)
                splitter = sse.Splitter()  # httpx2 would also end a line at U+2028, which JSON may hold
                async for piece in reply.aiter_bytes():
                    for said in splitter.payloads(piece):
                        last = said
        except (httpx2.HTTPError, TimeoutError, ValueError) as exc:
            raise AwayError(f"it broke off during a change ({type(exc).__name__})") from exc
        if not last.keys() & {"adapters", "error"}:
            raise AwayError("it broke off during a change")
        if "error" in last:
            raise self._problem(last)
        return read_state(last)

    def _check(self, reply: httpx2.Response) -> None:
        if reply.status_code == 200:
            return
        if reply.status_code in (401, 403):
            raise KeyRefusedError("it does not take the admin key: compare it with the pod's SIVE_ADMIN_KEYS")
        if reply.status_code == 400:
            raise self._problem(_json(reply))
        raise AwayError(f"it answers {reply.status_code}")

    def _problem(self, said: Any) -> AdapterError:
        problem = said.get("error") if isinstance(said, dict) else None
        problem = problem if isinstance(problem, dict) else {}
        words = " ".join(str(problem.get("message", "it does not say why")).split())[:1000]
        words = words.replace(self._key.get_secret_value(), "********")
        return AwayError(words) if problem.get("code") == "engine_failed" else RefusedError(words)


def _json(reply: httpx2.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return None
