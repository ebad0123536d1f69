"""The adapters that a base model is to have, as they are listed, and what became of each."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sive.errors import AdapterError
from sive_adapters import registry
from sive_adapters.registry import Adapter
from sive_adapters.store import Progress, Version

from sive_serve.adapter_state import AdapterState, Phase

log = logging.getLogger(__name__)


class WantedAdapters:
    """What the list at ``path`` says for ``model``, a hub id or an absolute folder; ``states``, by name.

    ``elsewhere``: names that the list has for other base models; ``base_name`` is taken too. ``changed`` is
    called when another version answers under a name, or none any more.

    Raises:
        AdapterError: the list cannot be read.
    """

    def __init__(self, path: Path, *, model: str) -> None:
        self.path = path
        self.model = model
        self.base_name = ""
        self.changed: Callable[[], None] = lambda: None
        self.states: dict[str, AdapterState] = {}
        self.elsewhere: tuple[str, ...] = ()
        self.read()

    def read(self) -> None:
        """Read the list; what is known of an adapter that is wanted as before is kept.

        Raises:
            AdapterError: it cannot be read.
        """
        ours, self.elsewhere = registry.adapters_for(registry.read_adapters(self.path), self.model)
        before = self.states
        self.states = {}
        for adapter in ours:
            known = before.get(adapter.name, AdapterState(adapter))
            is_same = known.adapter.release == adapter.release
            self.states[adapter.name] = (
                replace(known, adapter=adapter) if is_same else AdapterState(adapter, serving=known.serving)
            )

    def listed(self, name: str) -> Adapter | None:
        """Return an adapter, None when it is not listed."""
        state = self.states.get(name)
        return None if state is None else state.adapter

    def wanted(self, name: str) -> Adapter:
        """Return an adapter that is listed.

        Raises:
            AdapterError: it is not.
        """
        if name not in self.states:
            known = ", ".join(self.states) or "none"
            raise AdapterError(f"there is no adapter {name!r} for {self.model}; listed are: {known}")
        return self.states[name].adapter

    @property
    def listed_base_model(self) -> str:
        """How the base model is written in the list."""
        return f"file:{self.model}" if Path(self.model).is_absolute() else self.model

    def parse(self, keys: Mapping[str, Any]) -> Adapter:
        """Return the adapter that these keys of an ``[[adapter]]`` describe.

        Raises:
            AdapterError: one is wrong, it is for another base model, or its name is taken.
        """
        adapter = registry.parse_adapter(keys, self.path)
        if adapter.name == self.base_name:
            raise AdapterError(f"{adapter.name!r} is the name of the base model: choose another")
        if adapter.name in self.elsewhere:
            raise AdapterError(f"{adapter.name!r} is listed for another base model: choose another name")
        ours, _ = registry.adapters_for((adapter,), self.model)
        if not ours:
            raise AdapterError(
                f"adapter {adapter.name!r} is for {adapter.base_model}, the engine serves {self.model}"
            )
        return adapter

    def fetching(self) -> list[Progress]:
        """How far each adapter is that is being fetched."""
        return [state.progress for state in self.states.values() if state.progress is not None]

    # What becomes of them

    def update(self, adapter: Adapter, **changes: Any) -> None:
        """Note what became of an adapter, if it is still what is wanted."""
        state = self.states.get(adapter.name)
        if state is not None and state.adapter.release == adapter.release:
            self.states[adapter.name] = replace(state, **changes)

    def enter(self, adapter: Adapter, phase: Phase) -> None:
        """Show a phase, unless a version goes on answering meanwhile."""
        state = self.states.get(adapter.name)
        if state is not None and state.serving is None:
            self.update(adapter, phase=phase, progress=None)

    def refuse(self, adapter: Adapter, why: str, *, is_retried: bool = False) -> None:
        """Nobody speaks under its name."""
        log.error("%s", why)
        self.update(
            adapter,
            phase="refused",
            detail=why,
            progress=None,
            wanted=None,
            serving=None,
            is_retried=is_retried,
        )
        self.announce()

    def put_off(self, adapter: Adapter, why: str, *, is_retried: bool = False) -> None:
        """It cannot be had now: what answers goes on, and is refused only where nothing does."""
        state = self.states.get(adapter.name)
        if state is None or state.serving is None:
            self.refuse(adapter, why, is_retried=is_retried)
            return
        log.error("%s; version %s goes on", why, state.serving.short)
        self.update(adapter, phase="serving", detail=why, progress=None, is_retried=is_retried)

    def reject(self, adapter: Adapter, version: Version, why: str) -> None:
        """Refuse a version; another one that answers, or was found to begin with, goes on."""
        state = self.states.get(adapter.name)
        before = None if state is None else state.serving or state.wanted
        if state is None or before is None or before.digest == version.digest:
            self.refuse(adapter, why)
            return
        log.error("%s; version %s goes on", why, before.short)
        phase: Phase = "waiting" if state.serving is None else "serving"
        self.update(adapter, wanted=before, phase=phase, detail=why, progress=None, is_retried=False)

    def serve(self, name: str, version: Version) -> Version | None:
        """From now on this version answers under the adapter's name; return the one that did before."""
        before = self.states[name].serving
        self.states[name] = replace(
            self.states[name], phase="serving", detail="", progress=None, serving=version
        )
        self.announce()
        log.info("adapter %r: version %s answers", name, version.short)
        return before

    def lost(self) -> None:
        """Nobody answers under any name: the engine is gone."""
        for name, state in self.states.items():
            phase: Phase = "refused" if state.phase == "refused" else "waiting"
            self.states[name] = replace(state, serving=None, phase=phase, progress=None)
        self.announce()

    def announce(self) -> None:
        """Say that another version answers."""
        try:
            self.changed()
        except Exception:  # whatever a listener stumbles over, the engine is watched on
            log.exception("the routes were not built anew")
