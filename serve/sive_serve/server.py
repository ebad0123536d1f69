"""Runs the application: binds the port first, so that a port in use is one clear line."""

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import math
import signal
import socket
from types import FrameType

import uvicorn
from sive.config import GatewaySettings, Settings
from sive.errors import ConfigError

from sive_serve.app import create_app
from sive_serve.gateway import Gateway
from sive_serve.http import GatewayProtocol

FAREWELL_S = 2.0
"""For what still runs when the drain is over: each caller is told, which a cut connection does not."""

IN_A_HURRY = "was told not to wait for any answer"

LAST_WORDS_S = 0.01
"""What was written in the last turn of the event loop leaves in it."""

log = logging.getLogger(__name__)


def check_exposure(settings: GatewaySettings) -> None:
    """Refuse to listen beyond this machine without keys.

    Raises:
        ConfigError: says how to set one.
    """
    if _is_loopback(settings.host) or settings.api_keys or settings.token_secrets:
        return
    raise ConfigError(
        f"host {settings.host!r} is open to others and there are no API keys: "
        f"set {settings.api_keys_env}=KEY[,KEY...] or listen on 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(settings: GatewaySettings, *, way_out: str = "--port N or PORT=N") -> socket.socket:
    """A listening socket; ``way_out``: how another port is chosen.

    Raises:
        ConfigError: the port is in use, or the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
        # Bound sockets that do not listen can be bound twice: listening is what makes a second sive fail.
        sock.listen(2048)
    except OSError as exc:
        sock.close()
        raise ConfigError(_told(exc, settings, way_out)) from exc
    return sock


def bind_compat(settings: Settings) -> list[socket.socket]:
    """The second socket, for clients of the older services, when it is configured.

    Raises:
        ConfigError: as for the first.
    """
    if settings.compat.port is None:
        return []
    same_host = settings.gateway.model_copy(update={"port": settings.compat.port})
    return [bind(same_host, way_out="--compat-port N")]


def _told(exc: OSError, settings: GatewaySettings, way_out: str) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"port {settings.port} on {settings.host} is in use: choose another with {way_out}"
    if exc.errno == errno.EACCES:
        return f"port {settings.port} needs root: choose one above 1023 with {way_out}"
    return f"cannot listen on {settings.host}:{settings.port}: {exc.strerror or exc}"


def run(gateway: Gateway, *socks: socket.socket, log_level: str = "warning") -> None:
    """Serve on these sockets until SIGINT or SIGTERM; then finish what runs, for at most ``drain_s``."""
    config = uvicorn.Config(
        create_app(gateway),
        http=functools.partial(GatewayProtocol, gateway),  # type: ignore[arg-type]  # called like a class
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        log_level=log_level,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(gateway.settings.gateway.drain_s + FAREWELL_S),
    )
    # uvicorn shuts down and then raises the signal again, which would end a clean stop as a death by signal.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, gateway).run(sockets=list(socks))


class _Server(uvicorn.Server):
    """uvicorn's, which says why it does not stop at once, and stops quietly when it is told again."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._loop: asyncio.AbstractEventLoop | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and give what runs ``drain_s`` to finish."""
        self._gateway.stopping.set()
        drain_s = self._gateway.settings.gateway.drain_s
        self._loop = asyncio.get_running_loop()
        if self.force_exit:  # told twice before it came to this
            self._gateway.end_all(IN_A_HURRY)
        timers = [
            self._loop.call_later(drain_s, self._gateway.end_all),
            self._loop.call_later(drain_s + FAREWELL_S / 2, self._let_go),
        ]
        try:
            await super().shutdown(sockets)
        finally:
            for timer in timers:
                timer.cancel()
        if self.force_exit:
            await asyncio.sleep(LAST_WORDS_S)

    def _let_go(self) -> None:
        """Of callers who do not even read their farewell; closing a connection would wait for them."""
        for connection in list(self.server_state.connections):
            if connection.transport.get_write_buffer_size():
                connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second does not wait, and each caller is told before the end.

        A signal comes between any two lines, so what it asks of the event loop has to wait for its turn.
        uvicorn looks up ten times a second, and a turn takes milliseconds.
        """
        if self.should_exit:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._gateway.end_all, IN_A_HURRY)
            self.force_exit = True
            self._gateway.request_log.flush()
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the tasks it cancels are no news
        elif running := len(self._gateway.running):
            seconds = self._gateway.settings.gateway.drain_s
            log.warning(
                "stopping: %d still being answered, for up to %g s; once more stops now", running, seconds
            )
        super().handle_exit(sig, frame)
