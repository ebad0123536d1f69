"""The shim: the chain inside the caller's Python. Decides which route a request of the SDK takes."""

import asyncio
from dataclasses import replace

import httpx2

from sive import farewell
from sive.assemble import LocalModel, build_table, clocks, describe_local, limits, local_rung
from sive.backends.openai import OpenAIBackend
from sive.calls import Call, parse
from sive.chain import Chain
from sive.config import Loaded, Settings
from sive.drive import Caller, Driver, Wires
from sive.errors import RequestError
from sive.face_of import face_of
from sive.health import Health
from sive.policy import Clocks, Policy
from sive.protocol import Endpoint, Json, error_of, loads
from sive.routes import Model, Rung, Table
from sive.through import THROUGH
from sive.wires.httpx import HttpxWire
from sive.wires.local import LocalWire

IN_PROCESS_HOST = "sive.invalid"
"""The SDK's base_url when there is no host: RFC 2606 promises that it never resolves."""

_ENDPOINTS: dict[str, Endpoint] = {
    "/chat/completions": "chat/completions",
    "/completions": "completions",
    "/responses": "responses",
    "/embeddings": "embeddings",
}
_NOT_PASSED_ON = frozenset({"host", "content-length", "connection", "accept-encoding", "transfer-encoding"})


class Shim:
    """Routes of one SDK client.

    With a ``sive.toml`` its models take their routes. Everything else goes to the SDK's own host; chat and
    completions to the CPU model when that cannot be reached. Safe to use from several event loops and after
    a fork: each loop has wires of its own.
    """

    def __init__(self, loaded: Loaded, *, has_host: bool) -> None:
        self._settings: Settings = loaded.settings
        self._is_configured = loaded.path is not None
        self._local: LocalModel | None = describe_local(self._settings.local)
        self._table: Table = (
            build_table(self._settings, local=self._local) if self._is_configured or not has_host else {}
        )
        self._limits = limits(self._settings)
        self._health = Health(Policy(clocks(self._settings)))
        self._wires: dict[asyncio.AbstractEventLoop, Wires] = {}

    def endpoint(self, request: httpx2.Request) -> Endpoint | None:
        """Which of the chain's endpoints this is; None for all that goes to the host as it is."""
        if request.method != "POST":
            return None
        matches = (end for path, end in _ENDPOINTS.items() if request.url.path.endswith(path))
        return next(matches, None)

    def is_the_hosts(self, endpoint: Endpoint, content: bytes, request: httpx2.Request) -> bool:
        """Is this beyond chat, and of a model without a route here? Then it is the host's own affair.

        What the host makes of it only it knows: how long it thinks, what it may leave out, how it fails. And
        nobody here could answer for it.
        """
        if endpoint not in THROUGH or not _has_host(request):
            return False
        try:
            body = loads(content)
        except ValueError:
            return True
        name = body.get("model") if isinstance(body, dict) else None
        return not isinstance(name, str) or name not in self._table_for(request)

    def own_page(self, request: httpx2.Request) -> httpx2.Response | None:
        """What is asked of the host, where there is none: the models, or that nobody has such a page."""
        if _has_host(request):
            return None
        try:
            page = self._page(request.method, request.url.path.removeprefix("/v1"))
        except RequestError as problem:
            return httpx2.Response(problem.status, json=error_of(problem), request=request)
        return httpx2.Response(200, json=page, request=request)

    def _page(self, method: str, path: str) -> Json:
        if method == "GET" and path == "/models":
            return {"object": "list", "data": [_listed(name) for name in self._table]}
        if method == "GET" and path.startswith("/models/"):
            name = path.removeprefix("/models/")
            if name not in self._table:
                raise self._unknown(name)
            return _listed(name)
        message = (
            f"{method} {path}: this client has no host, and in the process sive has chat completions, "
            "completions, responses and models; with a base_url such a request goes there"
        )
        raise RequestError(message, status=404, code="unknown_url")

    def chain(self, endpoint: Endpoint, request: httpx2.Request, body: bytes, *, now: float) -> Chain:
        """The chain of one request.

        Raises:
            RequestError: the request is wrong, or its model unknown.
        """
        call = parse(endpoint, body, request.headers)
        model, policy, health = self._route(call, request)
        return Chain(call, model, face_of(call), policy, health=health, now=now)

    def driver(self, chain: Chain, caller: Caller) -> Driver:
        """What runs a chain on the current event loop."""
        return Driver(chain, self._loop_wires(), caller)

    async def aclose(self) -> None:
        """Close the current event loop's wires."""
        await farewell.finish()
        for wire in self._wires.pop(asyncio.get_running_loop(), {}).values():
            await wire.aclose()

    def _route(self, call: Call, request: httpx2.Request) -> tuple[Model, Policy, Health]:
        read_s = (request.extensions.get("timeout") or {}).get("read")
        configured = self._table_for(request).get(call.model)
        if configured is not None:
            policy = Policy(_within(clocks(self._settings), read_s), self._limits)
            return configured, policy, self._health
        if not _has_host(request):
            raise self._unknown(call.model)
        # The SDK may be pointed elsewhere with every request, so nothing is remembered of its host.
        policy = Policy(_within(Clocks(), read_s), self._limits, strict=True)
        return self._host_first(call, request), policy, Health(policy)

    def _table_for(self, request: httpx2.Request) -> Table:
        """The routes that may answer a request: of a host's models only those that somebody wrote down."""
        return self._table if self._is_configured or not _has_host(request) else {}

    def _unknown(self, name: str) -> RequestError:
        message = f"the model {name[:200]!r} does not exist; served are: {', '.join(self._table)}"
        return RequestError(message, status=404, param="model", code="model_not_found")

    def _host_first(self, call: Call, request: httpx2.Request) -> Model:
        url, _, query = str(request.url).partition("?")
        url = url.removesuffix(call.endpoint)
        headers = {name: value for name, value in request.headers.items() if name not in _NOT_PASSED_ON}
        host = OpenAIBackend("host", url, headers=headers, query=query)
        rungs = [Rung(host, call.model, "the SDK's base_url")]
        if self._local is not None:
            ours = self._settings.model.get(call.model)  # the gateway's own would have had that text too
            persona = ours.system_prompt if ours is not None else None
            rungs.append(replace(local_rung(self._local), is_degraded=True, system_prompt=persona))
        return Model(call.model, tuple(rungs), lets_upstream_degrade=len(rungs) == 1)

    def _loop_wires(self) -> Wires:
        loop = asyncio.get_running_loop()
        for closed in [other for other in self._wires if other.is_closed()]:
            del self._wires[closed]
        wires = self._wires.get(loop)
        if wires is None:
            wires = self._wires[loop] = {
                "http": HttpxWire(connect_s=self._settings.gateway.connect_s),
                "local": LocalWire(self._settings.local),
            }
        return wires


def _has_host(request: httpx2.Request) -> bool:
    """Is it sent to somebody? A client that was made without a host may be given one for a request."""
    return request.url.host != IN_PROCESS_HOST


def _listed(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "sive"}


def _within(clocks: Clocks, read_s: float | None) -> Clocks:
    """The SDK's ``timeout``: nobody may stay silent for longer, and a whole answer may take as long."""
    if read_s is None:
        return clocks
    return replace(
        clocks,
        first_token_s=min(clocks.first_token_s, read_s),
        stall_s=min(clocks.stall_s, read_s),
        silence_s=read_s,
        whole_s=read_s,
        deadline_s=max(clocks.deadline_s, read_s),
    )
