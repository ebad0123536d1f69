"""What a pod lacks of the adapters it should have: told from what it says, and asked for in order."""

from pathlib import Path
from typing import Any

import pytest
from sive.errors import AdapterError
from sive_adapters.registry import Adapter, Release
from sive_serve.pod_adapters import Change, plan, read_state, waiting_for, wanted_of

BASE = "Qwen/Qwen2.5-14B-Instruct"
FOLDER = Path("/lists")
PINNED = {"adapter_config.json": "a" * 64, "adapter_model.safetensors": "b" * 64}
OTHER = {"adapter_config.json": "a" * 64, "adapter_model.safetensors": "c" * 64}


def adapter(name: str = "spinoza", source: str = "hf://org/repo", **keys: Any) -> Adapter:
    """One that is wanted."""
    sha256 = keys.pop("sha256", {})
    return Adapter(name, keys.pop("base_model", BASE), Release(source, sha256), **keys)


def said(source: str = "hf://org/repo", **changed: Any) -> dict[str, Any]:
    """One as a pod shows it, serving."""
    one = {
        "phase": "serving",
        "source": source,
        "sha256": {},
        "version": "0123456789ab",
        "wanted": "0123456789ab",
        "system_prompt": None,
        "languages": [],
        "sampling": {},
    }
    return one | changed


def changes(*wanted: Adapter, removes: bool = False, **there: dict[str, Any]) -> list[Change]:
    """What is asked of a pod that shows these."""
    pod = read_state({"base_model": BASE, "adapters": there})
    return plan(wanted_of(wanted, pod), pod, removes=removes, folder=FOLDER)


def test_what_is_there_is_left_alone() -> None:
    """An unpinned one by where it is from, a pinned one by what it is, wherever it is from."""
    digest = Release("x", PINNED).digest
    assert digest is not None
    same = said("s3://elsewhere/x", version=digest[:12], wanted=digest[:12])
    assert changes(adapter(), spinoza=said()) == []
    assert changes(adapter(sha256=PINNED), spinoza=same) == []
    nothing_yet = said(sha256=PINNED, version=None, wanted=None, phase="fetching")
    assert changes(adapter(sha256=PINNED), spinoza=nothing_yet) == []


def test_what_is_missing_is_added_with_all_its_keys() -> None:
    """But those that say nothing; a folder is the one that pods share, by its absolute path."""
    wanted = adapter(
        source="file:spinoza", sha256=PINNED, system_prompt="You are Spinoza.", languages=("fr",)
    )
    keys = {
        "source": "file:/lists/spinoza",
        "sha256": PINNED,
        "system_prompt": "You are Spinoza.",
        "languages": ["fr"],
    }
    assert changes(wanted) == [Change("add", "spinoza", keys)]


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        (adapter(source="hf://org/repo@v2"), said()),
        (adapter(sha256=PINNED), said()),
        (adapter(sha256=PINNED), said(sha256=OTHER, version=None, wanted=None)),
        (adapter(system_prompt="Speak."), said()),
        (adapter(), said(system_prompt="Speak.")),
        (adapter(languages=("fr",)), said()),
        (adapter(sampling={"temperature": 0.5}), said(sampling={"temperature": 0.7})),
    ],
)
def test_what_is_another_is_updated(wanted: Adapter, there: dict[str, Any]) -> None:
    """Another source, version, or key; what is not wanted any more is taken back by name."""
    (change,) = changes(wanted, spinoza=there)
    assert change.action == "update"
    assert change.keys["system_prompt"] == wanted.system_prompt
    assert change.keys["languages"] == list(wanted.languages)
    assert change.keys["sampling"] == wanted.sampling


def test_what_the_list_does_not_know_stays_unless_it_is_told_to_go() -> None:
    """A renamed entry is there under its new name before the old one goes."""
    renamed = adapter("baruch")
    assert [change.action for change in changes(renamed, spinoza=said())] == ["add"]
    both = changes(renamed, removes=True, spinoza=said())
    assert [(change.action, change.name) for change in both] == [("add", "baruch"), ("remove", "spinoza")]


def test_a_list_for_other_models_empties_no_pod() -> None:
    """Neither does an empty one: what was meant cannot be that."""
    assert changes(adapter("kant", base_model="Qwen/Qwen3-8B"), removes=True, spinoza=said()) == []
    assert changes(removes=True, spinoza=said()) == []


def test_a_pod_is_in_step_when_it_serves_what_is_wanted() -> None:
    """What it still fetches, or refuses, is named with how far it is."""
    for phase, is_told in (("serving", False), ("fetching", True), ("refused", True)):
        version = None if is_told else "0123456789ab"
        shown = {"spinoza": said(phase=phase, version=version), "kant": said(phase="refused", version=None)}
        pod = read_state({"base_model": BASE, "adapters": shown})
        why = waiting_for(wanted_of([adapter()], pod), pod)
        assert why == (f"it does not serve 'spinoza' ({phase})" if is_told else "")


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"adapters": {}}, {"base_model": BASE, "adapters": {"a": {}}}]
)
def test_what_is_no_list_of_adapters_is_told_so(answer: Any) -> None:
    """A page of somebody else's, or a sive without an engine."""
    with pytest.raises(AdapterError, match="does not say what it serves"):
        read_state(answer)
