"""Four ways to ask: both drop-ins with the routes in the process, and the plain SDK against a gateway."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
import openai
import sive

from tests.chaos.outcome import Got, Json
from tests.chaos.scene import Scene
from tests.lab.upstream import Loop

PATIENCE_S = 20.0
"""Nothing may take longer: above the chain's own deadline."""

NOBODY = "http://127.0.0.1:1/v1"


class Recorded(httpx2.BaseTransport):
    """Keeps the bytes of every reply beside what the SDK makes of them."""

    def __init__(self) -> None:
        self._inner = httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """One exchange; the bytes are in ``extensions``."""
        response = self._inner.handle_request(request)
        raw = bytearray()
        response.stream = _Tee(response.stream, raw)  # type: ignore[arg-type]
        response.extensions["raw"] = raw
        return response

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class _Tee(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, raw: bytearray) -> None:
        self._stream = stream
        self._raw = raw

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            self._raw += part
            yield part

    def close(self) -> None:
        self._stream.close()


def request(scene: Scene, *, stream: bool) -> Json:
    """What is asked, in the SDK's terms."""
    body = {"model": scene.name, **scene.fault.body, "stream": stream}
    if stream and scene.fault.usage:
        body["stream_options"] = {"include_usage": True}
    ids = body.pop("return_token_ids", None)
    return body | ({"extra_body": {"return_token_ids": ids}} if ids else {})


def _create(client: Any, scene: Scene) -> Callable[..., Any]:
    endpoint = client.chat.completions if scene.fault.endpoint == "chat/completions" else client.completions
    return endpoint.create  # type: ignore[no-any-return]


def timed(ask: Callable[[Got], None]) -> Got:
    """Ask, and note how long it took and what was raised."""
    got, started = Got(), time.monotonic()
    try:
        ask(got)
    except Exception as exc:  # whatever an SDK raises is what a caller gets; the verdict looks at its kind
        got.error = exc
    got.seconds = time.monotonic() - started
    return got


def _read(client: openai.OpenAI, scene: Scene, got: Got, *, stream: bool) -> None:
    answer = _create(client, scene)(**request(scene, stream=stream))
    if not stream:
        got.answer = answer.to_dict()
        return
    try:
        for chunk in answer:
            got.chunks.append(chunk.to_dict())
    finally:
        raw = answer.response.extensions.get("raw")
        got.raw = None if raw is None else bytes(raw)


async def _listen(client: sive.AsyncOpenAI, scene: Scene, got: Got) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async for chunk in await _create(client, scene)(**request(scene, stream=True)):
            got.chunks.append(chunk.to_dict())


class Callers:
    """Who asks; a context manager. ``toml``: the routes of the drop-ins, ``gateway``: where one listens."""

    def __init__(self, toml: Path, gateway: str) -> None:
        self._toml = toml
        self._gateway = gateway
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Make the clients."""
        enter = self._stack.enter_context
        chain: Json = {"config": self._toml, "base_url": NOBODY, "api_key": "none", "timeout": PATIENCE_S}
        http = httpx2.Client(transport=Recorded(), timeout=PATIENCE_S)
        self._plain = enter(
            openai.OpenAI(base_url=f"{self._gateway}/v1", api_key="none", max_retries=0, http_client=http)
        )
        self._sync = enter(sive.OpenAI(**chain))
        self._loop = enter(Loop())
        self._async = sive.AsyncOpenAI(**chain)
        self._stack.callback(lambda: self._loop.run(self._async.close()))
        return self

    def __exit__(self, *exc: object) -> None:
        """Close them."""
        self._stack.close()

    def ask(self, scene: Scene) -> Got:
        """Ask once, as the scene's caller does."""
        match scene.caller:
            case "sync SDK":
                return timed(lambda got: _read(self._sync, scene, got, stream=True))
            case "async SDK":
                return timed(lambda got: self._loop.run(_listen(self._async, scene, got)))
        stream = scene.caller == "gateway stream"
        return timed(lambda got: _read(self._plain, scene, got, stream=stream))
