"""Asks idle backends for one token: health is a token that came, not a page that says it is well."""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from sive.assemble import Learned
from sive.backends import WireName
from sive.calls import parse
from sive.chain import Chain
from sive.drive import Driver
from sive.errors import LostError
from sive.faces import StreamFace
from sive.health import Health
from sive.policy import Policy
from sive.protocol import dumps, loads
from sive.report import Report
from sive.routes import Model, Rung, Table
from sive.wires import Wire, WireResponse

TICK_S = 0.25
JITTER = (0.7, 1.3)
MAX_PENDING = 3
"""Probes of one model under way: a lost one must not keep the next from finding that it lives again."""

LESSONS_S = 30.0
"""How often a backend that answers is asked what it serves."""

MAX_LESSON_BYTES = 1_000_000

Key = tuple[str, str]

log = logging.getLogger(__name__)


class Prober:
    """Watches the backends of a table whose ``probe`` is ``token``.

    ``learn`` is told what a backend says of its models, ``observe`` how a probe ended.
    """

    def __init__(
        self,
        *,
        table: Callable[[], Table],
        health: Health,
        policy: Policy,
        wires: Mapping[WireName, Wire],
        interval_s: float,
        learn: Callable[[Mapping[Key, Learned]], None],
        observe: Callable[[str, Report], None],
    ) -> None:
        self._table = table
        self._health = health
        self._policy = policy
        self._wires = wires
        self._interval_s = interval_s
        self._learn = learn
        self._observe = observe
        self._due: dict[Key, float] = {}
        self._pending: defaultdict[Key, set[asyncio.Task[None]]] = defaultdict(set)
        self._learned_at: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._run(), name="prober")

    async def stop(self) -> None:
        """Stop watching; probes under way are dropped."""
        tasks = [task for pending in self._pending.values() for task in pending]
        tasks += [self._task] if self._task is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception:  # the outermost frame of a task: without it health would be believed for ever
                log.exception("the prober stumbled")
            await asyncio.sleep(TICK_S)

    def _look(self) -> None:
        """Probe what is due: one model of a backend that is well, all those of one that is not."""
        now = asyncio.get_running_loop().time()
        for backend, rungs in self._watched().items():
            rested = [rung for rung in rungs if self._is_open(rung, now)]
            for rung in rested:
                self._probe_if_due(rung, now)
            # One that still rests is left alone: a refused key does not get better by being shown again.
            well = [rung for rung in rungs if not self._rests(rung)]
            if well and not rested and self._is_idle(backend, now):
                self._probe_if_due(min(well, key=lambda rung: self._due.get(_key(rung), 0.0)), now)

    def _watched(self) -> dict[str, list[Rung]]:
        rungs: defaultdict[str, dict[str, Rung]] = defaultdict(dict)
        for model in self._table().values():
            for rung in model.rungs:
                if rung.backend.probe == "token" and self._health.own_rest(rung) is None:
                    rungs[rung.backend.name].setdefault(rung.model, rung)
        return {backend: list(found.values()) for backend, found in rungs.items()}

    def _is_open(self, rung: Rung, now: float) -> bool:
        return any(self._health.may_probe(key, now) for key in (_key(rung), (rung.backend.name, "")))

    def _rests(self, rung: Rung) -> bool:
        open_keys = self._health.open_keys()
        return any(key in open_keys for key in (_key(rung), (rung.backend.name, "")))

    def _is_idle(self, backend: str, now: float) -> bool:
        """Has no caller's answer proved for a while that it lives?"""
        last = max((at for key, at in self._due.items() if key[0] == backend), default=0.0)
        return now >= last and now - self._health.gave_token_at(backend) >= self._interval_s

    def _probe_if_due(self, rung: Rung, now: float) -> None:
        key = _key(rung)
        if now < self._due.get(key, 0.0) or len(self._pending[key]) >= MAX_PENDING:
            return
        self._due[key] = now + self._interval_s * random.uniform(*JITTER)  # noqa: S311 - no secret
        task = asyncio.create_task(self._probe(rung), name=f"probe {rung.backend.name}")
        self._pending[key].add(task)
        task.add_done_callback(self._pending[key].discard)

    async def _probe(self, rung: Rung) -> None:
        """One token by the way that callers' requests take, so that health hears of it as of theirs."""
        loop = asyncio.get_running_loop()
        call = parse("chat/completions", _REQUEST, {})
        model = Model("probe", (rung,), guards_json=False)
        chain = Chain(
            call, model, StreamFace(), self._policy, health=self._health, now=loop.time(), is_probe=True
        )
        await Driver(chain, self._wires, _Nobody()).run()
        self._observe(rung.backend.name, chain.report)
        if chain.report.is_complete:
            await self._ask_what_it_serves(rung, loop.time())

    async def _ask_what_it_serves(self, rung: Rung, now: float) -> None:
        backend = rung.backend
        request = backend.models_request()
        if request is None or now - self._learned_at.get(backend.name, -LESSONS_S) < LESSONS_S:
            return
        self._learned_at[backend.name] = now
        try:
            async with asyncio.timeout(self._policy.clocks.first_token_s):
                response = await self._wires[backend.wire].open(request)
                try:
                    body = await _beginning(response)
                finally:
                    await response.aclose()
        except (LostError, TimeoutError):
            return
        if response.status == 200:
            wanted = {rung.model for rung in self._watched().get(backend.name, ())}
            lessons = _lessons(body)
            self._learn({(backend.name, name): lessons[name] for name in wanted & lessons.keys()})


async def _beginning(response: WireResponse) -> bytes:
    """The body, as far as anybody needs it."""
    body = bytearray()
    async for piece in response:
        body += piece
        if len(body) > MAX_LESSON_BYTES:
            break
    return bytes(body)


def _lessons(body: bytes) -> dict[str, Learned]:
    """What a list of models says, whatever its shape."""
    try:
        listed = loads(body)
    except ValueError:
        return {}
    entries: Any = listed.get("data") if isinstance(listed, dict) else None
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return {str(entry.get("id")): _lesson(entry) for entry in entries}


def _lesson(entry: dict[str, Any]) -> Learned:
    weights, context = entry.get("weights"), entry.get("max_model_len")
    return Learned(
        weights if isinstance(weights, str) else None,
        context if isinstance(context, int) and context > 0 else None,
        entry.get("position_seeds") is True,
    )


def _key(rung: Rung) -> Key:
    return rung.backend.name, rung.model


class _Nobody:
    """The caller of a probe."""

    is_slow = False

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Nothing is read."""

    def send(self, data: bytes) -> None:
        """Nothing is read."""

    def end(self, data: bytes) -> None:
        """Nothing is read."""


_REQUEST = dumps(
    {
        "model": "probe",
        "messages": [{"role": "user", "content": "."}],
        "max_tokens": 1,
        "temperature": 0,
        "stream": True,
    }
)
