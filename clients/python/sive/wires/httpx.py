"""The SDK drop-ins' wire: httpx2, which the OpenAI SDK brings."""

import ssl
from collections.abc import AsyncIterator, Mapping

import httpx2

from sive.errors import LostError, Why
from sive.wires import WireRequest
from sive.wires.pulled import PulledWire


class HttpxWire(PulledWire):
    """One httpx2 client; ``connect_s`` as in the gateway's wire. Redirects are never followed."""

    def __init__(self, *, connect_s: float = 3) -> None:
        timeout = httpx2.Timeout(None, connect=connect_s)
        limits = httpx2.Limits(max_connections=None)
        # HTTPS_PROXY and its kin are for hosts elsewhere: a proxy cannot reach this machine.
        near = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
        self._client = httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=False, mounts=near)

    async def open(self, request: WireRequest) -> "_Response":
        """Send and wait for the head.

        Raises:
            LostError: no head came.
        """
        sent = self._client.build_request(
            request.method, request.url, headers=request.headers, content=request.body or None
        )
        try:
            return _Response(await self._client.send(sent, stream=True))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as exc:
            raise _lost(exc) from exc

    async def aclose(self) -> None:
        """Close idle connections."""
        await self._client.aclose()


class _Response:
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for raw in self._response.aiter_bytes():
                yield raw
        except (httpx2.HTTPError, OSError) as exc:
            raise _lost(exc) from exc

    async def aclose(self) -> None:
        await self._response.aclose()


def _lost(exc: Exception) -> LostError:
    return LostError(_why(exc), str(exc))


def _why(exc: BaseException) -> Why:
    causes = _causes(exc)
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "tls"
    if any(type(cause).__name__ == "gaierror" for cause in causes):
        return "dns"
    match exc:
        case httpx2.TimeoutException():
            return "timeout"
        case httpx2.ConnectError():
            return "refused"
        case httpx2.RemoteProtocolError():
            return "eof"
        case httpx2.NetworkError() | OSError():
            return "reset"
        case _:
            return "malformed"


def _causes(exc: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while exc is not None and exc not in causes:
        causes.append(exc)
        exc = exc.__cause__ or exc.__context__
    return causes
