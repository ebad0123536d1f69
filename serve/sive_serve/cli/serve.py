"""`sive serve`."""

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from sive.config import Settings, load, process_environment
from sive.config.advice import advice
from sive_adapters.registry import base_model_of

from sive_serve.cli.adapter_list import DESIRED_ADAPTERS, engine_list, store_of
from sive_serve.cli.client import near_url
from sive_serve.cli.fetch import models_dir
from sive_serve.engine import Engine
from sive_serve.engine_adapters import EngineAdapters
from sive_serve.gateway import Gateway
from sive_serve.server import bind, bind_compat, check_exposure, run
from sive_serve.status import start_lines

log = logging.getLogger(__name__)


def serve(config: Path | None, overrides: Mapping[str, Any], log_level: str) -> None:
    """Bind the port, say what is served and why, and serve.

    Raises:
        SiveError: the configuration is wrong, the port taken, the engine or an adapter not there.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each thing that is asked of the engine
    loaded = load(config, overrides=overrides)
    settings = loaded.settings
    check_exposure(settings.gateway)
    sock, older = bind(settings.gateway), bind_compat(settings)
    gateway = Gateway(settings, engine=_engine(settings))
    for handler in logging.getLogger().handlers:
        gateway.request_log.keep_in_order(handler)
    typer.echo(f"sive on {_url(sock)}/v1")
    if gateway.page:
        typer.echo(f"  open {near_url(*sock.getsockname()[:2])}/ in a browser")
    for one in older:
        typer.echo(f"  for clients of the older services on {_url(one)} too")
    for line in start_lines(gateway):
        typer.echo(f"  {line}")
    for line in advice(settings):
        log.warning("%s", line)
    run(gateway, sock, *older)


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _engine(settings: Settings) -> Engine | None:
    if settings.engine is None:
        return None
    path = engine_list(settings) or (DESIRED_ADAPTERS if DESIRED_ADAPTERS.is_file() else None)
    store = store_of(settings)
    adapters = None
    if path is not None:
        adapters = EngineAdapters(path, store, model=base_model_of(settings.engine.model, Path()))
        for name in adapters.wanted.elsewhere:
            log.warning(
                "adapter %r is for another base model than %s and is not served", name, settings.engine.model
            )
    return Engine(
        settings.engine,
        adapters,
        environ=process_environment(),
        boot_times=store.root / ".boot_times.json",
        models_dir=models_dir(),
    )
