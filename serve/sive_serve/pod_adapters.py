"""What a pod has of the adapters that it should have, and what is to be changed there; no I/O."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sive.errors import AdapterError
from sive_adapters import registry, sources
from sive_adapters.registry import Adapter

AUTOMATIC = "x-sive-automatic"
"""A header of a change that no person asks for: a file that came wrong twice is not fetched for it again."""

Json = dict[str, Any]
Action = Literal["add", "update", "remove"]


@dataclass(frozen=True, slots=True)
class PodAdapter:
    """One adapter as a pod's ``GET /admin/adapters`` shows it.

    ``version``: the beginning of the digest of what it wants, else of what it serves; empty while it has
    neither. ``keys``: what its list says of it beside its files.
    """

    source: str
    sha256: Mapping[str, str]
    version: str
    is_serving: bool
    phase: str
    keys: Json


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod's base model, as it is written in a list, and its adapters by name.

    ``life``: another one after every start of the pod or of its engine.
    """

    base_model: str
    adapters: Mapping[str, PodAdapter] = field(default_factory=dict)
    life: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One POST to ``/admin/adapters``: ``keys`` of the entry as they are to be there."""

    action: Action
    name: str
    keys: Json = field(default_factory=dict)

    @property
    def body(self) -> Json:
        """What is sent."""
        return {"action": self.action, "name": self.name, **self.keys}

    @property
    def identity(self) -> str:
        """Equal for changes that ask for the same."""
        return json.dumps(self.body, sort_keys=True)


def read_state(said: Any) -> PodState:
    """Read what a pod says of its adapters.

    Raises:
        AdapterError: it is something else.
    """
    try:
        listed = {str(name): _read(one) for name, one in said["adapters"].items()}
        return PodState(str(said["base_model"]), listed, str(said.get("life", "")))
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise AdapterError(
            f"it does not say what it serves ({exc!r}): is it a sive of this version, with an engine and a "
            "list of adapters?"
        ) from exc


def wanted_of(listed: Iterable[Adapter], pod: PodState) -> dict[str, Adapter]:
    """Return the listed adapters that are for the pod's base model, by name."""
    return {one.name: one for one in listed if registry.keys_of(one)["base_model"] == pod.base_model}


def plan(wanted: Mapping[str, Adapter], pod: PodState, *, removes: bool, folder: Path) -> list[Change]:
    """Return what brings a pod in step: what is missing first, what is too much last.

    ``removes``: what the pod has beside ``wanted`` goes, unless nothing at all is wanted there: a list for
    other models is no wish for an empty pod. ``folder``: that of the list, which ``file:`` is relative to.
    """
    changes = []
    for name, adapter in wanted.items():
        there = pod.adapters.get(name)
        release, keys = _release(adapter, folder), _keys(adapter)
        if there is None:
            said = {key: value for key, value in keys.items() if value}
            changes.append(Change("add", name, release | said))
        elif not _has_files(there, adapter, release) or there.keys != keys:
            changes.append(Change("update", name, release | keys))
    surplus = pod.adapters.keys() - wanted.keys() if removes and wanted else set()
    return changes + [Change("remove", name) for name in sorted(surplus)]


def waiting_for(wanted: Mapping[str, Adapter], pod: PodState) -> str:
    """Say what a pod in need of no change does not serve yet, and how far that is; empty when nothing."""
    for name in wanted:
        there = pod.adapters.get(name)
        if there is not None and not there.is_serving:
            return f"it does not serve {name!r} ({there.phase})"
    return ""


def _read(said: Mapping[str, Any]) -> PodAdapter:
    return PodAdapter(
        source=str(said["source"]),
        sha256={str(file): str(digest) for file, digest in said["sha256"].items()},
        version=str(said["wanted"] or said["version"] or ""),
        is_serving=said["version"] is not None,
        phase=str(said["phase"]),
        keys={
            "system_prompt": said["system_prompt"],
            "languages": list(said["languages"]),
            "sampling": dict(said["sampling"]),
        },
    )


def _has_files(there: PodAdapter, adapter: Adapter, release: Json) -> bool:
    """Is what it has what is wanted: by content where that is pinned, else by where it is from?"""
    if (digest := adapter.release.digest) is None:
        return bool(there.source == release["source"])
    return digest.startswith(there.version) if there.version else there.sha256 == adapter.release.sha256


def _release(adapter: Adapter, folder: Path) -> Json:
    """Where its files are, and what they must be; a folder as the absolute path that pods share."""
    source = sources.parse(adapter.release.source, folder)
    text = str(source) if source.kind == "file" else adapter.release.source
    return {"source": text} | ({"sha256": dict(adapter.release.sha256)} if adapter.release.sha256 else {})


def _keys(adapter: Adapter) -> Json:
    return {
        "system_prompt": adapter.system_prompt,
        "languages": list(adapter.languages),
        "sampling": dict(adapter.sampling),
    }
