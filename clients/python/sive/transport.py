"""The SDK's transports: what a chain can answer through one, all else straight to the host."""

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future

import httpx2

from sive.drive import Driver
from sive.errors import RequestError
from sive.loop_thread import LoopThread
from sive.protocol import JSON_HEADERS, Endpoint, dumps, error_of
from sive.shim import Shim

MAX_WAITING_BYTES = 1_000_000
"""How far an answer may run ahead of a caller who reads slowly."""

Piece = bytes | BaseException | None
Answer = tuple[int, dict[str, str]]


class _Mailbox:
    """The caller's end of an answer: the driver fills it on its loop, the SDK reads it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.head: Future[Answer] = Future()
        self.pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self.has_ended = False
        self.driver: Driver | None = None
        self._waiting_bytes = 0

    @property
    def is_slow(self) -> bool:
        return self._waiting_bytes > MAX_WAITING_BYTES

    def begin(self, status: int, headers: dict[str, str]) -> None:
        if not self.head.done():  # else the caller was cancelled while waiting for it
            self.head.set_result((status, headers))

    def send(self, data: bytes) -> None:
        self._waiting_bytes += len(data)
        self.put(data)

    def end(self, data: bytes) -> None:
        if data:
            self.put(data)
        self.has_ended = True
        self.put(None)

    def put(self, piece: Piece) -> None:
        self.pieces.put(piece)

    def fail(self, exc: BaseException) -> None:
        """The driver died: whoever waits is told, for the head or for the next piece."""
        if not self.head.done():
            self.head.set_exception(exc)
        self.put(exc)

    def taken(self, size: int) -> None:
        """A piece was read; on the loop."""
        was_slow = self.is_slow
        self._waiting_bytes -= size
        if was_slow and not self.is_slow and self.driver is not None:
            self.driver.resume()


class _AsyncMailbox(_Mailbox):
    def __init__(self) -> None:
        super().__init__()
        self.arrived = asyncio.Event()

    def put(self, piece: Piece) -> None:
        super().put(piece)
        self.arrived.set()

    async def get(self) -> Piece:
        while self.pieces.empty():
            self.arrived.clear()
            await self.arrived.wait()
        return self.pieces.get_nowait()


async def _run(driver: Driver, mailbox: _Mailbox) -> None:
    mailbox.driver = driver
    try:
        await driver.run()
    except Exception as exc:  # the outermost frame of a task: the caller's thread is told, nobody else asks
        mailbox.fail(exc)
    finally:
        mailbox.driver = None
        if not mailbox.has_ended:  # whoever still reads must not wait for ever, nor take this for the end
            mailbox.fail(httpx2.ReadError("the stream was closed"))


def _refusal(problem: RequestError, request: httpx2.Request) -> httpx2.Response:
    content = dumps(error_of(problem))
    return httpx2.Response(problem.status, headers=JSON_HEADERS, content=content, request=request)


class AsyncSiveTransport(httpx2.AsyncBaseTransport):
    """For ``httpx2.AsyncClient``: runs on the caller's own event loop."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._host = httpx2.AsyncClient(timeout=None)  # a client, not a transport: it knows HTTPS_PROXY

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer through the chain, or pass the request to the host."""
        endpoint = self._shim.endpoint(request)
        if endpoint is None:
            return self._shim.own_page(request) or await self._host.send(request, stream=True)
        content = await request.aread()
        if self._shim.is_the_hosts(endpoint, content, request):
            return await self._host.send(request, stream=True)
        mailbox = _AsyncMailbox()
        try:
            chain = self._shim.chain(endpoint, request, content, now=mailbox.loop.time())
        except RequestError as problem:
            return _refusal(problem, request)
        driver = self._shim.driver(chain, mailbox)
        task = asyncio.create_task(_run(driver, mailbox))
        try:
            status, headers = await asyncio.wrap_future(mailbox.head)
        except asyncio.CancelledError:
            driver.left()
            raise
        return httpx2.Response(
            status, headers=headers, stream=_AsyncBody(mailbox, driver, task), request=request
        )

    async def aclose(self) -> None:
        """Close the wires of this loop."""
        await self._host.aclose()
        await self._shim.aclose()


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(self, mailbox: _AsyncMailbox, driver: Driver, task: "asyncio.Task[None]") -> None:
        self._mailbox, self._driver, self._task = mailbox, driver, task

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._mailbox.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            self._mailbox.taken(len(piece))
            yield piece

    async def aclose(self) -> None:
        if not self._task.done():
            self._driver.left()


class SiveTransport(httpx2.BaseTransport):
    """For ``httpx2.Client``: the driver runs on the private loop thread."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._host = httpx2.Client(timeout=None)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer through the chain, or pass the request to the host."""
        endpoint = self._shim.endpoint(request)
        if endpoint is None:
            return self._shim.own_page(request) or self._host.send(request, stream=True)
        content = request.read()
        if self._shim.is_the_hosts(endpoint, content, request):
            return self._host.send(request, stream=True)
        thread = LoopThread.shared()
        try:
            body = thread.submit(self._start(endpoint, request, content)).result()
        except RequestError as problem:
            return _refusal(problem, request)
        try:
            status, headers = body.mailbox.head.result()
        except BaseException:
            body.close()
            raise
        return httpx2.Response(status, headers=headers, stream=body, request=request)

    def close(self) -> None:
        """Close connections; also those that the chain's wires keep on the private loop."""
        self._host.close()
        LoopThread.shared().submit(self._shim.aclose()).result()

    async def _start(self, endpoint: Endpoint, request: httpx2.Request, content: bytes) -> "_Body":
        mailbox = _Mailbox()
        driver = self._shim.driver(
            self._shim.chain(endpoint, request, content, now=mailbox.loop.time()), mailbox
        )
        return _Body(mailbox, driver, asyncio.create_task(_run(driver, mailbox)))


class _Body(httpx2.SyncByteStream):
    def __init__(self, mailbox: _Mailbox, driver: Driver, task: "asyncio.Task[None]") -> None:
        self.mailbox, self._driver, self._task = mailbox, driver, task

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self.mailbox.pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            self.mailbox.loop.call_soon_threadsafe(self.mailbox.taken, len(piece))
            yield piece

    def close(self) -> None:
        if not self._task.done():
            self.mailbox.loop.call_soon_threadsafe(self._driver.left)
