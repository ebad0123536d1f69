"""One request through a chain of this process, over real sockets, and all that became of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sive import farewell
from sive.backends import Backend
from sive.chain import Chain
from sive.drive import Driver
from sive.faces import StreamFace, WholeFace
from sive.health import Health
from sive.policy import Clocks, Policy
from sive.protocol import loads
from sive.report import Report
from sive.routes import Model, Rung
from sive.wires import Wire
from sive.wires.http import HttpWire

from tests.chain_play import call
from tests.lab.callers import Listener, on_a_loop

Json = dict[str, Any]
PATIENT = Clocks(first_token_s=30, stall_s=30, backoff_s=(0.01, 0.01))
"""For hosts that answer, however busy the machine."""


@dataclass
class Heard:
    """What the caller heard; ``events`` are its stream's, without comments and the end mark."""

    status: int
    headers: dict[str, str]
    body: bytes
    report: Report
    health: Health
    events: list[Json] = field(init=False)

    def __post_init__(self) -> None:
        lines = self.body.decode().split("\n\n")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        self.events = [loads(one) for one in data if one != "[DONE]"]

    @property
    def is_done(self) -> bool:
        """Does the stream end with its mark?"""
        return self.body.endswith(b"data: [DONE]\n\n")

    @property
    def json(self) -> Json:
        """An answer in one piece, or an error."""
        payload: Json = loads(self.body)
        return payload

    @property
    def deltas(self) -> list[str]:
        """The pieces of text, in order."""
        choices = [choice for one in self.events for choice in one.get("choices", ())]
        said = [(choice.get("delta") or {}).get("content") or choice.get("text") for choice in choices]
        return [one for one in said if one]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.deltas)

    @property
    def sive(self) -> Json:
        """What sive says of the answer, in its first chunk."""
        said: Json = self.events[0]["sive"]
        return said

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Why each rung did not answer: reason and message."""
        return [(one.reason, one.message) for one in self.report.failures]


def model(*backends: Backend, named: str = "up", **of_model: Any) -> Model:
    """A model whose rungs these are, all of its own voice."""
    rungs = tuple(Rung(one, named, "test", weights="w") for one in backends)
    return Model("spinoza", rungs, weights="w", **of_model)


def ask(
    *backends: Backend,
    clocks: Clocks = PATIENT,
    health: Health | None = None,
    endpoint: str = "chat/completions",
    named: str = "up",
    wire: Callable[[], Wire] = HttpWire,
    until: Callable[[Listener], Awaitable[object]] | None = None,
    **body: Any,
) -> Heard:
    """Ask; ``until``: the caller leaves when it returns. ``guard_json`` is the model's."""
    asked = {"stream": True} | body
    of_model = {"guards_json": asked.pop("guard_json", True)}
    policy = Policy(clocks)
    known = health or Health(policy)

    async def work() -> tuple[Listener, Report]:
        request = call(endpoint, **asked)  # type: ignore[arg-type]
        face = StreamFace() if request.stream else WholeFace(request)
        loop, open_wire, listener = asyncio.get_running_loop(), wire(), Listener()
        route = model(*backends, named=named, **of_model)
        chain = Chain(request, route, face, policy, health=known, now=loop.time())
        driver = Driver(chain, {"http": open_wire}, listener)
        running = asyncio.create_task(driver.run())
        try:
            if until is not None:
                await until(listener)
                driver.left()
            await running
        finally:
            await farewell.finish()
            await open_wire.aclose()
        return listener, chain.report

    listener, report = on_a_loop(work, 60)
    return Heard(listener.status, listener.headers, listener.heard, report, known)
