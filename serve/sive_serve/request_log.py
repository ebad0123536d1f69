"""One line per request, in the format of the other log lines, at a tenth of what `logging` takes for one."""

import asyncio
import contextlib
import logging
import sys
import threading
import time

from sive.report import Report

FLUSH_AFTER_S = 0.2

_WHY = {"degraded": "another voice, not wanted"}
"""Reasons that say too little beside a status."""

log = logging.getLogger(__name__)


class RequestLog:
    """Collects lines and writes them together, at most FLUSH_AFTER_S late and all of them on ``flush``.

    Lines are for people and carry their own time, so being late costs nothing; a write for each costs as much
    as parsing its request. All but ``keep_in_order`` belongs to the thread that made it.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._flushes: asyncio.TimerHandle | None = None
        self._thread = threading.get_ident()
        self._second = 0
        self._date = ""

    def add(self, report: Report) -> None:
        """A request is over."""
        if not log.isEnabledFor(logging.INFO):
            return
        seconds = (report.ended_at or report.started_at) - report.started_at
        status = 499 if report.caller_left else report.status
        line = (
            f"{report.call.request_id} {report.call.model} {report.backend or '-'} {status} {seconds:.3f}s"
            f"{' degraded' if report.is_degraded else ''}"
        )
        if report.failures:
            told = report.failed_over if report.backend else report.failures  # nobody answered: why, of all
            tried = ", ".join(
                f"{failure.backend}: {_WHY.get(failure.reason, failure.reason)}" for failure in told
            )
            line += f" after {tried}" if tried else ""
        self._lines.append(f"{self._now()} INFO {__name__}: {line}\n")
        if self._flushes is None:
            self._flushes = asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._flushes is not None:
            self._flushes.cancel()
            self._flushes = None
        lines, self._lines = self._lines, []
        if lines:
            sys.stderr.write("".join(lines))
            sys.stderr.flush()

    def keep_in_order(self, handler: logging.Handler) -> None:
        """Let the other log lines of this thread not overtake these; a handler that writes where these go."""

        def flush_first(_: logging.LogRecord) -> bool:
            if threading.get_ident() == self._thread:
                with contextlib.suppress(OSError):  # a full disk is not the fault of who logs something
                    self.flush()
            return True

        handler.addFilter(flush_first)

    def _now(self) -> str:
        """As `logging` writes it; the date is formatted once a second."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._date = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._date},{int((now - second) * 1000):03d}"
