"""The lines of requests that are over: late, but never lost."""

import io
import logging
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from pathlib import Path

import pytest
import uvicorn
from sive.config import load
from sive.report import Failure, Report
from sive_serve.app import create_app
from sive_serve.gateway import Gateway
from sive_serve.request_log import RequestLog
from sive_serve.server import _Server

from tests.chain_play import call
from tests.lab.callers import on_a_loop


@pytest.fixture(autouse=True)
def loud(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Lines are wanted; uvicorn's own logger is as before afterwards."""
    caplog.set_level(logging.INFO, "sive_serve.request_log")
    uvicorns = logging.getLogger("uvicorn.error")
    before = uvicorns.level
    yield
    uvicorns.setLevel(before)


def test_other_lines_do_not_overtake_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads the log from top to bottom reads what happened in that order."""
    other = logging.getLogger("tests.other")
    handler = logging.StreamHandler()  # to what is standard error now, as a server's own

    async def work() -> None:
        waiting = RequestLog()
        waiting.keep_in_order(handler)
        other.addHandler(handler)
        waiting.add(Report(call(), 0.0, status=200, backend="b", ended_at=2.0))
        other.warning("happened later")

    on_a_loop(work)
    other.removeHandler(handler)
    first, second = capsys.readouterr().err.splitlines()
    assert "r1 spinoza b 200" in first
    assert second == "happened later"


def test_a_full_disk_is_not_the_fault_of_who_logs() -> None:
    """Lines that cannot be written do not raise where something else is logged."""
    other, handler = logging.getLogger("tests.other"), logging.StreamHandler(io.StringIO())
    tried: list[bool] = []

    async def work() -> None:
        waiting = RequestLog()
        waiting.keep_in_order(handler)
        other.addHandler(handler)
        waiting.add(Report(call(), 0.0, status=200, backend="b", ended_at=2.0))
        with redirect_stderr(full):
            other.warning("what else happened")
        tried.append(waiting._flushes is None)

    # A full disk says so once more when the file is closed.
    with suppress(OSError), Path("/dev/full").open("w", buffering=1) as full:
        on_a_loop(work)
    other.removeHandler(handler)
    assert tried == [True]


def test_nobodys_answer_says_why_of_every_rung(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of one that could have answered, as another voice, which was not wanted."""
    report = Report(call(), 0.0, status=503, ended_at=0.0)
    report.failures = [
        Failure("pod-a", "spinoza", "refused", "refused the connection"),
        Failure("local", "auto", "degraded", "another voice, and only the model's own is wanted"),
    ]

    async def work() -> None:
        waiting = RequestLog()
        waiting.add(report)
        waiting.flush()

    on_a_loop(work)
    said = capsys.readouterr().err
    assert "spinoza - 503 0.000s after pod-a: refused, local: another voice, not wanted" in said


def test_a_second_signal_writes_what_waits_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else still has to stop, an engine for one, may be killed before it has."""
    path = tmp_path / "sive.toml"
    path.write_text("[local]\nenabled = false\n")

    async def work() -> None:
        gateway = Gateway(load(path, environ={"SIVE_OFFLINE": "1"}).settings)
        server = _Server(uvicorn.Config(create_app(gateway), log_config=None), gateway)
        server.handle_exit(signal.SIGTERM, None)
        assert (server.should_exit, server.force_exit) == (True, False)
        gateway.request_log.add(Report(call(), 0.0, status=200, backend="b", ended_at=2.0))
        assert capsys.readouterr().err == ""
        server.handle_exit(signal.SIGTERM, None)
        assert server.force_exit
        assert "r1 spinoza b 200 2.000s" in capsys.readouterr().err

    on_a_loop(work)
