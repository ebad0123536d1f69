"""Four ways to ask: both drop-ins with the routes in the process, and the plain SDK against a gateway."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import sive

from tests.chaos.outcome import Got, Json
from tests.chaos.scene import Scene, config

PATIENCE_S = 9.0
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


def timed(scene: Scene, ask: Callable[[Got], None]) -> Got:
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


def by_gateway(url: str, scene: Scene) -> Iterator[Got]:
    """The plain SDK against a running gateway."""
    http = httpx2.Client(transport=Recorded(), timeout=PATIENCE_S)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http) as client:
        stream = scene.caller == "gateway stream"
        for _ in range(scene.fault.times):
            yield timed(scene, lambda got: _read(client, scene, got, stream=stream))


def by_sync_sdk(toml: Path, scene: Scene) -> Iterator[Got]:
    """`from sive import OpenAI`."""
    with sive.OpenAI(config=toml, base_url=NOBODY, api_key="none", timeout=PATIENCE_S) as client:
        for _ in range(scene.fault.times):
            yield timed(scene, lambda got: _read(client, scene, got, stream=True))


def by_async_sdk(toml: Path, scene: Scene) -> Iterator[Got]:
    """`from sive import AsyncOpenAI`, in an event loop of its own."""

    async def read(client: sive.AsyncOpenAI, got: Got) -> None:
        async with asyncio.timeout(PATIENCE_S):
            async for chunk in await _create(client, scene)(**request(scene, stream=True)):
                got.chunks.append(chunk.to_dict())

    with asyncio.Runner() as runner:
        client = sive.AsyncOpenAI(config=toml, base_url=NOBODY, api_key="none", timeout=PATIENCE_S)
        for _ in range(scene.fault.times):
            yield timed(scene, lambda got: runner.run(read(client, got)))
        runner.run(client.close())


def ask(scene: Scene, *, gateway: str, folder: Path) -> Iterator[Got]:
    """Ask as the scene's caller does, as often as its fault says."""
    if scene.caller.startswith("gateway"):
        return by_gateway(gateway, scene)
    toml = folder / f"{scene.name}.toml"
    toml.write_text(config([scene]))
    return (by_sync_sdk if scene.caller == "sync SDK" else by_async_sdk)(toml, scene)
