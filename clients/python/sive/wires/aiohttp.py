"""The gateway's wire: aiohttp, one pool for all backends."""

import ssl
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from sive.errors import LostError, Why
from sive.wires import KEEPALIVE_S, WireRequest
from sive.wires.pulled import PulledWire


@lru_cache(maxsize=256)
def _proxy(url: str) -> str | None:
    """The proxy that HTTPS_PROXY and its kin name for a host.

    aiohttp's own ``trust_env`` would also read ~/.netrc, and send what it finds there to backends.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


class AiohttpWire(PulledWire):
    """HTTP/1.1 with keep-alive. ``connect_s`` is how long a TCP and TLS handshake may take.

    Redirects are never followed: a backend's key must not travel to another host. Reading has no clock
    here; the chain's clocks decide.
    """

    def __init__(self, *, connect_s: float = 3) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            skip_auto_headers=("User-Agent", "Accept"),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=2**18,
            auto_decompress=False,
        )

    async def open(self, request: WireRequest) -> "_Response":
        """Send and wait for the head.

        Raises:
            LostError: no head came.
        """
        try:
            response = await self._session.request(
                request.method,
                request.url,
                data=request.body or None,
                headers=request.headers,
                allow_redirects=False,
                proxy=_proxy(request.url),
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            raise _lost(exc) from exc
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            response.close()
            raise LostError("malformed", f"content-encoding {encoding} was not asked for")
        return _Response(response)

    async def aclose(self) -> None:
        """Close idle connections."""
        await self._session.close()


class _Response:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while raw := await content.readany():
                yield raw
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise _lost(exc) from exc

    async def aclose(self) -> None:
        # close() keeps a connection whose body was read to its end, and aborts any other.
        self._response.close() if not self._response.content.at_eof() else self._response.release()


def _lost(exc: Exception) -> LostError:
    return LostError(_why(exc), str(exc))


def _why(exc: Exception) -> Why:
    match exc:
        case aiohttp.ClientConnectorDNSError():
            return "dns"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "tls"
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorError():
            return "refused"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionResetError():
            return "reset"
        case aiohttp.ClientPayloadError():
            return "eof"
        case _:
            return "malformed"
