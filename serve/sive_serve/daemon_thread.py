"""Blocking work beside the event loop, in threads that do not keep the process alive."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Return what ``work`` returns, computed in a thread of its own.

    Unlike ``asyncio.to_thread`` a process may end while it runs: downloads and checks are made to be
    killed at any moment, and a stop should not wait for a network.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[[], None]) -> None:
        if not done.done():  # nobody waits any more for what was cancelled
            act()

    def run() -> None:
        try:
            result = work()
        except BaseException as exc:  # whatever it is belongs to who waits for it
            act = _raising(done, exc)
        else:
            act = lambda: done.set_result(result)  # noqa: E731
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(settle, act)

    threading.Thread(target=run, name="sive-work", daemon=True).start()
    return await done


def _raising(done: "asyncio.Future[T]", exc: BaseException) -> Callable[[], None]:
    return lambda: done.set_exception(exc)
