"""One private event loop in a daemon thread: the sync SDK runs the async driver on it."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class LoopThread:
    """An event loop of its own, for as long as the process lives."""

    _shared: "LoopThread | None" = None
    _lock = threading.Lock()
    _left_behind: ClassVar[list["LoopThread"]] = []

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="sive-loop", daemon=True).start()

    @classmethod
    def shared(cls) -> "LoopThread":
        """The process's one, started at first use."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    @classmethod
    def _forget(cls) -> None:
        """After a fork: the thread is gone, so the next use starts another.

        The old loop is kept and never used, because closing its sockets would speak to backends on the
        parent's connections.
        """
        if cls._shared is not None:
            cls._left_behind.append(cls._shared)
        cls._shared, cls._lock = None, threading.Lock()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run on the loop; from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LoopThread._forget)
