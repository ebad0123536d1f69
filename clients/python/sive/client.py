"""``OpenAI`` and ``AsyncOpenAI``: the SDK's own clients with the chain underneath."""

from pathlib import Path
from typing import Any

import httpx2
import openai

from sive.config import load, sdk_names_a_host
from sive.shim import IN_PROCESS_HOST, Shim
from sive.transport import AsyncSiveTransport, SiveTransport


class OpenAI(openai.OpenAI):
    """``openai.OpenAI`` that falls to the next rung, in the end to the CPU model, when a host is gone.

    Takes what ``openai.OpenAI`` takes, but for ``http_client``. Models of a ``sive.toml`` (``config``, or
    found as ``sive serve`` finds it) take their routes; every other model goes to ``base_url``, and its chat
    and completions to the CPU model when that host cannot be reached, stays silent or says 502, 503 or 504.
    Without ``base_url``, key and ``OPENAI_*`` variables the packaged models are served in this process.
    ``max_retries`` is 0 unless given: a chain asks again by itself, and asking a host for what is beyond
    chat is left to it.

    Raises:
        ConfigError: the ``sive.toml`` is wrong.
    """

    def __init__(
        self, *, config: Path | None = None, http_client: httpx2.Client | None = None, **options: Any
    ) -> None:
        if not isinstance(http_client, _Client):
            _refuse(http_client)
            http_client = _Client(
                transport=SiveTransport(_shim(config, options)), timeout=openai.DEFAULT_TIMEOUT
            )
        options.setdefault("max_retries", 0)
        super().__init__(http_client=http_client, **options)


class AsyncOpenAI(openai.AsyncOpenAI):
    """As ``OpenAI``, for ``async`` code; runs on the caller's event loop."""

    def __init__(
        self, *, config: Path | None = None, http_client: httpx2.AsyncClient | None = None, **options: Any
    ) -> None:
        if not isinstance(http_client, _AsyncClient):
            _refuse(http_client)
            transport = AsyncSiveTransport(_shim(config, options))
            http_client = _AsyncClient(transport=transport, timeout=openai.DEFAULT_TIMEOUT)
        options.setdefault("max_retries", 0)
        super().__init__(http_client=http_client, **options)


class _Client(httpx2.Client):
    """Marks a client that has our transport: ``with_options`` hands it to the copy."""


class _AsyncClient(httpx2.AsyncClient):
    """As ``_Client``."""


def _refuse(http_client: object) -> None:
    if http_client is not None:
        raise TypeError(
            "sive's OpenAI brings its own http_client, because failover happens in its transport; "
            "for proxies and certificates set HTTPS_PROXY and SSL_CERT_FILE"
        )


def _shim(config: Path | None, options: dict[str, Any]) -> Shim:
    has_host = sdk_names_a_host() or bool(options.get("base_url") or options.get("api_key"))
    if not has_host:
        options["base_url"] = f"http://{IN_PROCESS_HOST}/v1"
        options["api_key"] = "none-needed"
    return Shim(load(config), has_host=has_host)
