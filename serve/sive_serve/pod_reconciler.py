"""Keeps pods at one list of adapters: looks at what each has, and asks for what it lacks."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sive.errors import AdapterError
from sive_adapters.registry import read_adapters

from sive_serve.daemon_thread import in_thread
from sive_serve.pod_adapters import Change, Json, PodState, plan, waiting_for, wanted_of
from sive_serve.pod_admin import AwayError, KeyRefusedError, PodAdmin, RefusedError

EVERY_S = 180.0
"""How often a pod is looked at when nothing gives a reason to."""

TICK_S = 1.0
"""How often the list is looked at."""

APART_S = 5.0
"""Looks at one pod are at least so far apart, however many callers miss an adapter there."""

AWAY_S = (5.0, 10.0, 20.0, 40.0, 60.0)
KEY_REFUSED_S = 300.0
UNSETTLED_S = 10.0
"""Until a pod is looked at again that is still fetching or proving something."""

REFUSED_S = (60.0, 120.0, 300.0, 600.0, 1800.0)
"""Waits before a refused change is asked for again, unless the list changes or the pod comes back."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refusal:
    """A change that a pod refused so many times, and why; it is not asked for before ``until``."""

    why: str
    count: int
    until: float


@dataclass(slots=True)
class _Pod:
    """What is known of one pod. ``why``: as callers may see it; ``detail``: as its administrator may."""

    admin: PodAdmin
    look: asyncio.Event = field(default_factory=asyncio.Event)
    is_in_step: bool = False
    why: str = "it was not looked at yet"
    detail: str = ""
    life: str = ""
    failures: int = 0
    looked_at: float | None = None
    refusals: dict[str, _Refusal] = field(default_factory=dict)


class PodReconciler:
    """Keeps each pod at the list at ``path``, one change at a time; pods do not wait for each other.

    A pod is looked at when this starts, when it failed somebody (and again until it is back), when the list
    changes, and every few minutes. What the list does not know is left alone unless ``removes``. ``observe``
    is told of every change: the pod's name, the action, ``done``, ``refused`` or ``away``.

    Raises:
        AdapterError: the list cannot be read.
    """

    def __init__(
        self,
        path: Path,
        admins: Sequence[PodAdmin],
        *,
        removes: bool,
        observe: Callable[[str, str, str], None],
    ) -> None:
        read_adapters(path)
        self._path = path
        self._removes = removes
        self._observe = observe
        self._pods = {admin.name: _Pod(admin) for admin in admins}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look."""
        self._tasks = [asyncio.create_task(self._keep(pod)) for pod in self._pods.values()]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """Stop; a change that was asked for goes on at its pod."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pod in self._pods.values():
            await pod.admin.aclose()

    def missed(self, backend: str) -> None:
        """A backend did not answer for a model: it may lack it, be away, or be back with what it had once."""
        if (pod := self._pods.get(backend)) is not None:
            pod.look.set()

    def in_step(self) -> dict[str, bool]:
        """Which pods serve all that the list wants of them."""
        return {name: pod.is_in_step for name, pod in self._pods.items()}

    def state(self, *, for_administrators: bool = False) -> Json:
        """How each pod does; where things are from, and what pods say, only for administrators."""
        now = time.monotonic()
        return {
            name: {
                "in_step": pod.is_in_step,
                "why": pod.why,
                "looked_s_ago": None if pod.looked_at is None else round(now - pod.looked_at, 1),
            }
            | ({"detail": pod.detail} if for_administrators else {})
            for name, pod in self._pods.items()
        }

    async def _watch(self) -> None:
        """Look at all pods when the list changes."""
        before = await self._stamp()
        while True:
            await asyncio.sleep(TICK_S)
            if (now := await self._stamp()) != before:
                before = now
                for pod in self._pods.values():
                    pod.look.set()

    async def _stamp(self) -> tuple[int, int, int] | None:
        """Return what tells one state of the list's file from another."""

        def stamp() -> tuple[int, int, int] | None:
            try:
                stat = self._path.stat()
            except OSError:
                return None
            return stat.st_mtime_ns, stat.st_ino, stat.st_size

        return await in_thread(stamp)

    async def _keep(self, pod: _Pod) -> None:
        while True:
            pod.look.clear()
            try:
                wait_s = await self._reconcile(pod)
            except Exception:  # the outermost frame of a task: without it this pod would be forgotten
                log.exception("pod %r: its adapters cannot be compared", pod.admin.name)
                self._note(pod, "an error in sive itself; its log says more")
                wait_s = EVERY_S
            pod.looked_at = time.monotonic()
            await asyncio.sleep(min(APART_S, wait_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s * random.uniform(0.9, 1.1)):  # noqa: S311 - jitter
                    await pod.look.wait()

    async def _reconcile(self, pod: _Pod) -> float:
        """Bring a pod in step; return how long to leave it alone."""
        try:
            wait_s = await self._compare(pod)
        except AwayError as exc:
            self._note(pod, str(exc) if isinstance(exc, KeyRefusedError) else "it cannot be asked", str(exc))
            pod.failures += 1
            is_key = isinstance(exc, KeyRefusedError)
            return KEY_REFUSED_S if is_key else AWAY_S[min(pod.failures, len(AWAY_S)) - 1]
        except AdapterError as exc:
            self._note(pod, "it cannot be compared with the list", str(exc))
            return EVERY_S
        pod.failures = 0
        return wait_s

    async def _compare(self, pod: _Pod) -> float:
        listed = await in_thread(lambda: read_adapters(self._path))
        there = await pod.admin.look()
        if pod.life != there.life:  # what one life refused another may take
            pod.refusals.clear()
            pod.life = there.life
        wanted = wanted_of(listed, there)

        def lacking() -> list[Change]:
            return plan(wanted, there, removes=self._removes, folder=self._path.parent)

        asked = {change.identity for change in lacking()}
        pod.refusals = {key: refusal for key, refusal in pod.refusals.items() if key in asked}
        for change in lacking():
            if change not in (left := lacking()):
                continue  # somebody else did it meanwhile
            if change.action == "remove" and left[0].action != "remove":
                break  # what is to replace it was refused
            there = await self._change(pod, change) or there
        if left := lacking():
            refusal = pod.refusals.get(left[0].identity)
            why = (
                f"it refused to {left[0].action} {left[0].name!r}" if refusal else "it does not keep changes"
            )
            self._note(pod, why, refusal.why if refusal else "")
            return self._wait_s(pod)
        if waiting := waiting_for(wanted, there):
            self._note(pod, waiting)
            return EVERY_S if waiting.endswith("(refused)") else UNSETTLED_S
        self._note(pod, "")
        return EVERY_S

    async def _change(self, pod: _Pod, change: Change) -> PodState | None:
        """Ask for a change; None when it was refused, or was a while ago.

        Raises:
            AwayError: the pod cannot do it now.
        """
        before = pod.refusals.get(change.identity)
        if before is not None and time.monotonic() < before.until:
            return None
        what = f"{change.action} {change.name!r}"
        try:
            there = await pod.admin.change(change)
        except RefusedError as exc:
            count = before.count + 1 if before else 1
            until = time.monotonic() + REFUSED_S[min(count, len(REFUSED_S)) - 1]
            pod.refusals[change.identity] = _Refusal(str(exc), count, until)
            self._observe(pod.admin.name, change.action, "refused")
            log.warning("pod %r refused to %s: %s", pod.admin.name, what, exc)
            return None
        except AwayError:
            self._observe(pod.admin.name, change.action, "away")
            raise
        pod.refusals.pop(change.identity, None)
        self._observe(pod.admin.name, change.action, "done")
        log.info("pod %r: %s, done", pod.admin.name, what)
        return there

    def _wait_s(self, pod: _Pod) -> float:
        """Until the first refused change may be asked for again."""
        now = time.monotonic()
        return min([EVERY_S, *(max(APART_S, one.until - now) for one in pod.refusals.values())])

    def _note(self, pod: _Pod, why: str, detail: str = "") -> None:
        """Remember how a pod does; news is a line in the log."""
        if (why, detail) != (pod.why, pod.detail):
            if why:
                log.warning("pod %r is not in step: %s", pod.admin.name, detail or why)
            else:
                log.info("pod %r has the adapters that are wanted", pod.admin.name)
        pod.is_in_step, pod.why, pod.detail = not why, why, detail
