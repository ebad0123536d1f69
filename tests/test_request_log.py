"""The lines of requests that are over: late, but never lost."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from sive.config import load
from sive.report import Report
from sive_serve.app import create_app
from sive_serve.gateway import Gateway
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
