"""`sive adapters`: what it prints for people and programs, and what it does to the list."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sive.errors import AdapterError
from sive_adapters.pin import pin
from sive_adapters.registry import Release, edit, read_adapters
from sive_adapters.store import Store

from tests.conftest import ROOT, TINY, clean_environment
from tests.lab.adapters import BROKEN, make

Sive = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Return a copy of the tiny models."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


@pytest.fixture
def sive(tmp_path: Path) -> Sive:
    """Run `sive adapters` in an empty folder."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "sive_serve.cli", "adapters", *map(str, arguments)],
            cwd=tmp_path,
            env=clean_environment(HOME=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def printed(result: "subprocess.CompletedProcess[str]", status: int = 0) -> Any:
    """Return the JSON that was printed, and nothing else."""
    assert (result.returncode, result.stderr) == (status, "")
    return json.loads(result.stdout)


def complaint(result: "subprocess.CompletedProcess[str]") -> str:
    """Return the one line of an error of ours."""
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("sive: ")
    return line


def test_the_list_shows_what_is_pinned(sive: Sive, tiny: Path) -> None:
    """A line an adapter, for grep; the same as JSON."""
    listed = tiny / "adapters.toml"
    lines = [line.split("\t") for line in sive("list", "--adapters", listed).stdout.splitlines()]
    assert lines[2] == ["kant", "unpinned", str(tiny / "base"), "file:kant"]
    said = printed(sive("list", "--adapters", listed, "--json"))
    assert [one["name"] for one in said] == ["spinoza", "bergson", "kant"]
    assert said[0]["digest"] is None


def test_show_has_a_line_for_everything(sive: Sive, tiny: Path) -> None:
    """What the list does not say is a dash, what it says has a line each."""
    listed = tiny / "adapters.toml"
    lines = dict(line.split("\t") for line in sive("show", "kant", "--adapters", listed).stdout.splitlines())
    assert (lines["system_prompt"], lines["languages"], lines["sampling"]) == ("-", "-", "-")
    listed.write_text(listed.read_text() + "\n[adapter.sampling]\ntemperature = 0.5\ntop_k = 5\n")
    shown = sive("show", "kant", "--adapters", listed).stdout
    assert "sampling.temperature\t0.5\nsampling.top_k\t5\n" in shown
    assert "sampling\t-" not in shown


def test_the_help_says_what_each_group_changes(sive: Sive) -> None:
    """The list on this machine, or running sives."""
    shown = sive("--help").stdout
    here, there = shown.index("The list, adapters.toml"), shown.index("Running sives")
    assert here < shown.index("│ pin ") < there < shown.index("│ rollback ")


def test_without_a_named_list_that_of_the_engine_is_shown(sive: Sive, tiny: Path, tmp_path: Path) -> None:
    """[engine] of a sive.toml, else lora_adapters/adapters.toml of this folder, else an error."""
    assert "lora_adapters/adapters.toml" in complaint(sive("list"))
    (tmp_path / "lora_adapters").mkdir()
    shutil.copy(ROOT / "lora_adapters" / "adapters.toml", tmp_path / "lora_adapters")
    assert sive("list").stdout.startswith("spinoza\tunpinned\tQwen/Qwen2.5-14B-Instruct\thf://FJDaz/")
    (tmp_path / "sive.toml").write_text(f'[engine]\nmodel = "x"\nadapters = "{tiny}/adapters.toml"\n')
    assert len(sive("list").stdout.splitlines()) == 3


def test_pinning_writes_what_sha256sum_says(sive: Sive, tiny: Path) -> None:
    """All that are unpinned, or those named; pinned again they stay as they are."""
    listed = tiny / "adapters.toml"
    (kant,) = printed(sive("pin", "kant", "--adapters", listed, "--json"))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert kant["sha256"][file] == hashlib.sha256((tiny / "kant" / file).read_bytes()).hexdigest()
    others = sive("pin", "--adapters", listed)
    assert [line.split()[0] for line in others.stdout.splitlines()] == ["spinoza", "bergson"]
    text = listed.read_text()
    assert sive("pin", "--adapters", listed).stdout == ""
    assert sive("pin", "kant", "--adapters", listed).stdout == f"kant {kant['digest'][:12]}\n"
    assert listed.read_text() == text
    shown = sive("show", "kant", "--adapters", listed).stdout
    assert f"version\t{kant['digest'][:12]}\n" in shown
    assert printed(sive("show", "kant", "--adapters", listed, "--json")) == kant


def test_files_that_are_not_the_pinned_ones_are_told(sive: Sive, tiny: Path) -> None:
    """A pin is never replaced by what the folder holds now."""
    listed = tiny / "adapters.toml"
    sive("pin", "kant", "--adapters", listed)
    before = listed.read_text()
    shutil.copy(tiny / "spinoza" / "adapter_model.safetensors", tiny / "kant")
    assert "'kant' is pinned to" in complaint(sive("pin", "kant", "--adapters", listed))
    assert listed.read_text() == before


def test_an_adapter_that_was_changed_meanwhile_is_not_pinned(tiny: Path) -> None:
    """What was hashed is no longer what is listed."""
    listed = tiny / "adapters.toml"
    kant = read_adapters(listed)[2]
    other = replace(kant, release=Release("file:spinoza"))
    edit(listed, lambda adapters: (*adapters[:2], other))
    with pytest.raises(AdapterError, match=r"changed in .* meanwhile: try again"):
        pin(listed, kant, Store(tiny / "store"))
    assert pin(listed, other, Store(tiny / "store")).release.digest


@pytest.mark.parametrize("command", ["show", "check", "pin"])
def test_an_unknown_name_is_told_with_the_nearest(sive: Sive, tiny: Path, command: str) -> None:
    """Exit status 1 and one line."""
    line = complaint(sive(command, "kantt", "--adapters", tiny / "adapters.toml"))
    assert "no adapter 'kantt': did you mean 'kant'?" in line


def test_what_cannot_be_read_cannot_be_pinned(sive: Sive, tiny: Path) -> None:
    """The missing file is named."""
    (tiny / "kant" / "adapter_model.safetensors").unlink()
    line = complaint(sive("pin", "kant", "--adapters", tiny / "adapters.toml"))
    assert "'kant'" in line
    assert "adapter_model.safetensors: No such file" in line


def test_checks_tell_what_is_refused_and_why(sive: Sive, tiny: Path) -> None:
    """Exit status 0 when all may be served, 1 when one may not; folders beside names."""
    listed = tiny / "adapters.toml"
    good = printed(sive("check", "--adapters", listed, "--json"))
    assert [(one["name"], one["ok"]) for one in good] == [
        ("spinoza", True),
        ("bergson", True),
        ("kant", True),
    ]
    broken = make(BROKEN["nan"], tiny / "broken")
    said = printed(sive("check", broken, "kant", "--base", tiny / "base", "--adapters", listed, "--json"), 1)
    assert [(one["ok"], one["folder"]) for one in said] == [(False, str(broken)), (True, str(tiny / "kant"))]
    assert said[0]["findings"][0]["code"] == "not_finite"
    lines = sive("check", broken, "--base", tiny / "base").stdout.splitlines()
    assert lines[0].startswith(f"{broken}\trefused\tnot_finite: tensor ")
    assert lines[1].startswith(f"{broken}\tnote\tbase_model: ")


def test_a_folder_without_a_base_is_checked_as_far_as_it_goes(sive: Sive, tiny: Path) -> None:
    """What was not compared is a note, and no reason to refuse."""
    result = sive("check", tiny / "kant")
    assert result.returncode == 0
    assert "\tnote\tshapes_not_checked: " in result.stdout
    result = sive("check", f"{tiny}/kant", "--base", tiny / "base", "--json")
    assert [one["code"] for one in printed(result)[0]["findings"]] == ["base_model"]


def test_what_is_elsewhere_is_noted(sive: Sive) -> None:
    """An adapter that is not on this machine is neither fetched nor refused."""
    result = sive("check", "--adapters", ROOT / "lora_adapters" / "adapters.toml")
    assert (result.returncode, result.stdout.split("\t")[1]) == (0, "note")
    assert "not_here" in result.stdout
