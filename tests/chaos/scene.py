"""A scene: the hosts of one fault for one caller, and the route that leads to them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from tests.chaos.faults import REFUSED, VOICE, WEIGHTS, Fault, Json
from tests.lab.hosts import Hosts, refused_url
from tests.lab.upstream import Seen, Upstream

CALLERS = ("sync SDK", "async SDK", "gateway stream", "gateway JSON")

CLOCKS = {
    "deadline_s": 12,
    "connect_s": 1,
    "head_s": 0.3,
    "first_token_s": 2,
    "stall_s": 3,
    "whole_s": 4,
    "rest_s": 0.5,
    "drain_s": 1,
}


@dataclass(frozen=True, eq=False, slots=True)
class Scene:
    """``name`` is also the served model's. ``alone``: the only other rung is the CPU."""

    name: str
    fault: Fault
    caller: str
    alone: bool
    primary: Upstream | None
    second: Upstream | None

    @property
    def is_of_gateway(self) -> bool:
        """Is it asked through a gateway?"""
        return self.caller.startswith("gateway")

    @property
    def hosts(self) -> list[Upstream]:
        """Those that listen."""
        return [host for host in (self.primary, self.second) if host is not None]

    @property
    def asked(self) -> list[Seen]:
        """The attempts on all hosts, in order."""
        seen = [one for host in self.hosts for one in host.seen if one.method == "POST"]
        return sorted(seen, key=lambda one: one.at)

    @property
    def drawn_seed(self) -> int | None:
        """The seed that the first attempt came with, where the caller gave none."""
        return self.asked[0].body.get("seed") if self.asked else None

    def toml(self) -> str:
        """Its backends and its model."""
        fault, name = self.fault, self.name
        url = self.primary.url if self.primary is not None else refused_url()
        text = _backend(f"{name}-a", url, fault.keys)
        rungs = [f'{{ backend = "{name}-a", model = "pod-a", weights = "{WEIGHTS}" }}']
        if self.second is not None:
            text += _backend(f"{name}-b", self.second.url, fault.second_keys or fault.keys)
            weights = fault.second_voice.weights
            rungs.append(f'{{ backend = "{name}-b", model = "pod-b", weights = "{weights}" }}')
        else:
            rungs.append('{ backend = "local", model = "embedded" }')
        return f"{text}{_table(f'[model.{name}]', fault.model_keys)}route = [{', '.join(rungs)}]\n"


def _backend(name: str, url: str, keys: Json) -> str:
    return _table("[[backend]]", {"name": name, "url": url, **keys})


def _table(head: str, values: Json) -> str:
    return "\n".join([head, *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])


def config(scenes: list[Scene]) -> str:
    """The ``sive.toml`` that serves them, with short clocks."""
    return _table("[gateway]", CLOCKS) + "".join(scene.toml() for scene in scenes)


def staged(hosts: Hosts, faults: tuple[Fault, ...], *, prefix: str = "f") -> Iterator[Scene]:
    """Every scene of some faults, each with hosts of its own."""
    for number, fault in enumerate(faults):
        for caller in CALLERS:
            for alone in (False, True) if fault.cpu is not None else (False,):
                for place, manner in enumerate(fault.primary):
                    kind = "".join(word[0] for word in caller.split())
                    name = f"{prefix}{number}{kind}{'cpu' if alone else ''}-{place}"
                    primary = None if manner == REFUSED else hosts.add(manner, VOICE)  # type: ignore[arg-type]
                    second = None if alone else hosts.add(fault.second, fault.second_voice)
                    yield Scene(name, fault, caller, alone, primary, second)


@dataclass(frozen=True, eq=False, slots=True)
class Cell:
    """The scenes that share a field of the scorecard."""

    fault: Fault
    caller: str
    alone: bool
    scenes: tuple[Scene, ...]


def cells(scenes: list[Scene]) -> list[Cell]:
    """The fields of the scorecard, row by row."""
    together = groupby(scenes, key=lambda scene: (scene.fault.name, scene.caller, scene.alone))
    grouped = [tuple(group) for _, group in together]
    return [Cell(group[0].fault, group[0].caller, group[0].alone, group) for group in grouped]
