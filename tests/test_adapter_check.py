"""What is wrong with an adapter is found before any engine loads it; nothing in it is executed or trusted."""

import json
import os
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sive_adapters.base_model import BaseModel, read_base_model
from sive_adapters.check import Finding, check, lora_rank
from sive_adapters.progress import Progress

from tests.conftest import ROOT, TINY
from tests.lab.adapters import BROKEN, Q0, SOUND, Made, copy_of, make, read, write, write_raw

BASE_NAME = "sive/sive-tiny"  # as the tiny adapters name theirs, but for who published it


@pytest.fixture(scope="module")
def base() -> BaseModel:
    """Return the tiny base."""
    known = read_base_model(str(TINY / "base"))
    assert known is not None
    return known


def fatal(findings: tuple[Finding, ...]) -> set[str]:
    """Return the codes of what an adapter is refused for."""
    for finding in findings:
        assert "\n" not in finding.message
        assert len(finding.message) < 400
    return {finding.code for finding in findings if finding.is_fatal}


def notes(findings: tuple[Finding, ...]) -> set[str]:
    """Return the codes of what is only worth knowing."""
    return {finding.code for finding in findings if not finding.is_fatal}


@pytest.mark.parametrize("name", ["spinoza", "bergson", "kant"])
def test_a_good_adapter_has_no_findings(base: BaseModel, name: str) -> None:
    """The tiny adapters fit their base in every respect."""
    assert check(TINY / name, base, max_lora_rank=8, base_model=BASE_NAME) == ()


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_adapter_is_refused_for_its_one_reason(tmp_path: Path, base: BaseModel, how: str) -> None:
    """Each way to break an adapter has its code, and no other fatal one."""
    made = BROKEN[how]
    base_model = "Qwen/Qwen2.5-14B-Instruct" if made.code == "base_model" else BASE_NAME
    assert fatal(check(make(made, tmp_path / "x"), base, max_lora_rank=16, base_model=base_model)) == {
        made.code
    }


@pytest.mark.parametrize("how", SOUND)
def test_a_sound_adapter_is_not_refused(tmp_path: Path, base: BaseModel, how: str) -> None:
    """Other types, ranks, scalings and selections of modules are as good, and nothing is noted of them."""
    base_model = "Qwen/tiny" if how == "another form of the base" else BASE_NAME
    assert check(make(SOUND[how], tmp_path / "x"), base, max_lora_rank=16, base_model=base_model) == ()


def test_a_model_saved_without_its_head_is_told_so(tmp_path: Path, base: BaseModel) -> None:
    """VLLM would load it and ignore every tensor."""
    (finding, *_) = check(make(BROKEN["the model without its head"], tmp_path / "x"), base)
    assert "lacks 'model.'" in finding.message


def test_without_a_usable_configuration_the_tensors_are_still_checked(
    tmp_path: Path, base: BaseModel
) -> None:
    """Halves that do not fit together are told beside what is wrong with the configuration."""
    folder = make(BROKEN["no rank"], tmp_path / "x")
    config, tensors = read(folder)
    tensors[f"{Q0}.lora_A.weight"] = np.ones((4, 192), np.float32)
    write(folder, config, tensors)
    assert fatal(check(folder, base, base_model=BASE_NAME)) == {"rank", "rank_mismatch"}


def test_everything_is_told_and_each_kind_once(tmp_path: Path, base: BaseModel) -> None:
    """All that is wrong comes in one look; of what many tensors have, one is named and the rest counted."""
    folder = copy_of("spinoza", tmp_path / "x")
    config, tensors = read(folder)
    config |= {"r": 16, "use_dora": True}
    tensors[f"{Q0}.lora_A.weight"] = np.full((8, 100), np.nan, np.float32)
    write(folder, config, tensors)
    findings = check(folder, base, max_lora_rank=8, base_model=BASE_NAME)
    assert fatal(findings) == {"dora", "rank_too_large", "rank_mismatch", "shape", "not_finite"}
    told = {finding.code: finding.message for finding in findings}
    assert told["rank_mismatch"].endswith("(and 55 more like this)")
    assert Q0 in told["not_finite"]
    assert "rank 16, the engine allows 8: raise max_lora_rank" in told["rank_too_large"]


def test_without_the_base_shapes_are_not_compared_and_it_says_so(tmp_path: Path) -> None:
    """What can be known from the adapter alone is still checked."""
    assert check(TINY / "kant", None)[0].code == "shapes_not_checked"
    assert not check(TINY / "kant", None)[0].is_fatal
    for how in ("nan", "half a module", "rank of the tensors too small", "dora", "head"):
        assert fatal(check(make(BROKEN[how], tmp_path / how), None)) == {BROKEN[how].code}


def test_an_untrained_adapter_is_noted(tmp_path: Path, base: BaseModel) -> None:
    """Where every B is zero, as PEFT begins, the adapter answers as its base does."""

    def untrained(config: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = np.zeros_like(tensors[name])

    findings = check(make(Made(untrained), tmp_path / "x"), base, base_model=BASE_NAME)
    assert (fatal(findings), notes(findings)) == (set(), {"untrained"})


def test_modules_and_targets_that_differ_are_noted(tmp_path: Path, base: BaseModel) -> None:
    """A target without tensors, and tensors that are no target, are worth knowing."""
    folder = copy_of("spinoza", tmp_path / "x")
    config, tensors = read(folder)
    del tensors[f"{Q0}.lora_A.weight"], tensors[f"{Q0}.lora_B.weight"]
    write(folder, config, tensors)
    findings = check(folder, base, base_model=BASE_NAME)
    assert (fatal(findings), notes(findings)) == (set(), {"incomplete"})
    assert "1 of 28 target modules" in findings[0].message
    write(folder, config | {"target_modules": ["q_proj"], "exclude_modules": "x"}, tensors)
    assert notes(check(folder, base, base_model=BASE_NAME)) == {"not_targeted"}


@pytest.mark.parametrize(
    ("trained_on", "listed", "verdict"),
    [
        ("Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-14B-Instruct", "same"),
        ("unsloth/qwen2.5-14b-instruct-unsloth-bnb-4bit", "Qwen/Qwen2.5-14B-Instruct", "same"),
        ("Qwen/Qwen2.5-14B-Instruct-AWQ", "Qwen/Qwen2.5-14B-Instruct", "same"),
        ("Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-14B-Instruct", "same"),
        ("/content/Qwen2.5-14B-Instruct/", "Qwen/Qwen2.5-14B-Instruct", "same"),
        (None, "Qwen/Qwen2.5-14B-Instruct", "same"),
        ("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct", "other"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-Instruct-v0.2", "other"),
        ("/content/checkpoint-500", "Qwen/Qwen2.5-14B-Instruct", "unsure"),
        ("sive-tiny", "/models/base", "unsure"),
    ],
)
def test_the_base_it_was_trained_on_is_compared_by_name(
    tmp_path: Path, base: BaseModel, trained_on: str | None, listed: str, verdict: str
) -> None:
    """Other forms and publishers of a model are the same; another hub id is refused, a folder only noted."""
    made = Made(lambda config, tensors: config.update(base_model_name_or_path=trained_on))
    findings = check(make(made, tmp_path / "x"), base, base_model=listed)
    expected = {"same": (set(), set()), "other": ({"base_model"}, set()), "unsure": (set(), {"base_model"})}
    assert (fatal(findings), notes(findings)) == expected[verdict]


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_is_refused_and_never_opened(tmp_path: Path, base: BaseModel) -> None:
    """An adapter_model.bin can hold a program; the message says how to be rid of it."""
    folder = copy_of("spinoza", tmp_path / "x")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    findings = check(folder, base, base_model=BASE_NAME)
    assert fatal(findings) == {"pickle"}
    assert "save_pretrained" in findings[0].message
    assert not (tmp_path / "trace").exists()


def _missing(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _truncated(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "adapter_model.safetensors", size)


def _config(text: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "adapter_config.json").write_bytes(text)

    return change


def _linked(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.rename(folder.parent / "elsewhere")
    file.symlink_to("../elsewhere")


def _linked_to_nowhere(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("adapter_config.json")


def _pipe(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (_missing("adapter_config.json"), {"config_missing"}),
        (_missing("adapter_model.safetensors"), {"weights_missing"}),
        (_truncated(0), {"weights_empty"}),
        (_truncated(5), {"weights_unreadable"}),
        (_truncated(1000), {"weights_unreadable"}),
        (_truncated(100_000), {"weights_unreadable"}),
        (_config(b'{"peft_type": "LORA"'), {"config_unreadable"}),
        (_config(b"[]"), {"config_unreadable"}),
        (_config(b"\xff\xfe"), {"config_unreadable"}),
        (_config(b'{"peft_type": "LORA", "r": 8, "r": 4}'), {"config_unreadable"}),
        (_config(b"[" * 100_000), {"config_unreadable"}),
        (_config(b'{"r": ' + b"9" * 5000 + b"}"), {"config_unreadable"}),
        (_config(b'{"peft_type": "' + b"x" * 5_000_000 + b'"}'), {"config_unreadable"}),
        (_config(b"{}"), {"peft_type", "rank", "alpha", "target_modules"}),
        (_linked, {"symlink"}),
        (_linked_to_nowhere, {"symlink"}),
        (_pipe, {"not_a_file"}),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    tmp_path: Path, base: BaseModel, change: Callable[[Path], None], codes: set[str]
) -> None:
    """What is missing, cut off, unreadable or elsewhere is named; nothing hangs."""
    folder = copy_of("spinoza", tmp_path / "x")
    change(folder)
    assert fatal(check(folder, base, base_model=BASE_NAME)) == codes


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The one thing that is told then."""
    assert [finding.code for finding in check(tmp_path / "x", None)] == ["folder_missing"]


def test_a_link_within_the_folder_is_good(tmp_path: Path, base: BaseModel) -> None:
    """Only links that lead out of it are refused."""
    folder = copy_of("spinoza", tmp_path / "x")
    (folder / "adapter_model.safetensors").rename(folder / "blob")
    (folder / "adapter_model.safetensors").symlink_to("blob")
    assert check(folder, base, base_model=BASE_NAME) == ()


def _entry(**keys: object) -> bytes:
    return json.dumps(
        {f"{Q0}.lora_A.weight": {"dtype": "F32", "shape": [8, 1], "data_offsets": [0, 32]} | keys}
    ).encode()


HOSTILE: dict[str, tuple[bytes, bytes, int | None]] = {
    "a header longer than the file": (b"{}", b"", 2**63),
    "a header of many megabytes": (_entry() + b" " * 9_000_000, bytes(32), None),
    "lists in lists": (b"[" * 7_000_000, b"", None),
    "objects in objects": (b'{"a layer of an onion": ' * 100_000, b"", None),
    "millions of lists": (b'{"a": [' + b"[]," * 2_000_000 + b"[]]}", b"", None),
    "not an object": (b"[1]", b"", None),
    "entries that are none": (b'{"a": 1}', b"", None),
    "not text": (b"\xff" * 100, b"", None),
    "a name twice": (_entry()[:-1] + b"," + _entry()[1:], bytes(32), None),
    "a negative offset": (_entry(data_offsets=[-32, 0]), bytes(32), None),
    "an end before its begin": (_entry(data_offsets=[32, 0]), bytes(32), None),
    "a negative shape": (_entry(shape=[-8, -1]), bytes(32), None),
    "a shape of absurd size": (_entry(shape=[2**62, 2**62]), bytes(32), None),
    "a shape of many sizes": (_entry(shape=[9] * 200_000), bytes(32), None),
    "a shape of numbers without end": (
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b"]}}",
        b"",
        None,
    ),
    "a shape of fractions": (_entry(shape=[8.0, 1.0]), bytes(32), None),
    "a shape of truths": (_entry(shape=[True, True]), bytes(4), None),
    "a shape that is larger than its bytes": (_entry(shape=[8, 2]), bytes(32), None),
    "bytes of nobody": (_entry(), bytes(64), None),
    "a gap before a tensor": (_entry(data_offsets=[32, 64]), bytes(64), None),
    "one tensor over another": (_entry()[:-1] + b"," + _entry().replace(b"_A", b"_B")[1:], bytes(64), None),
    "tensors over each other": (_entry()[:-1] + b"," + _entry().replace(b"_A", b"_B")[1:], bytes(32), None),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_file_is_refused_at_no_cost(tmp_path: Path, base: BaseModel, how: str) -> None:
    """Whatever a header claims is an ordinary refusal, and costs less memory than a small model."""
    folder = copy_of("spinoza", tmp_path / "x")
    header, data, length = HOSTILE[how]
    write_raw(folder, header, data, length=length)
    tracemalloc.start()
    try:
        assert fatal(check(folder, base, base_model=BASE_NAME)) == {"weights_unreadable"}
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_names_without_end_are_refused(tmp_path: Path, base: BaseModel) -> None:
    """A tensor's name is cut in the message, and matched with no pattern."""
    folder = copy_of("spinoza", tmp_path / "x")
    write_raw(folder, _entry().replace(Q0.encode(), b"model." + b"a" * 1_000_000), bytes(32))
    assert "unknown_tensor" in fatal(check(folder, base, base_model=BASE_NAME))


def test_progress_is_told_in_bytes(base: BaseModel) -> None:
    """The last word is that all bytes were read."""
    told: list[Progress] = []
    check(TINY / "spinoza", base, told=told.append)
    assert told[-1].what == "spinoza: check"
    assert told[-1].done_bytes == told[-1].total_bytes
    assert told[-1].done_bytes > 100_000


def test_every_code_is_documented() -> None:
    """docs/adapters.md explains each, and no test is about a code that it does not know."""
    text = (ROOT / "docs" / "adapters.md").read_text()
    sources = (ROOT / "lora_adapters" / "sive_adapters").glob("*.py")
    codes = {
        code for source in sources for code in re.findall(r'findings\.add\(\s*"(\w+)"', source.read_text())
    }
    assert len(codes) > 25
    assert not {code for code in codes | {made.code for made in BROKEN.values()} if f"`{code}`" not in text}


def test_the_rank_is_the_largest_of_all_modules(tmp_path: Path) -> None:
    """``rank_pattern`` gives single modules a rank above ``r``."""
    made = Made(lambda config, tensors: config.update(rank_pattern={"q_proj": 32}))
    assert lora_rank(TINY / "spinoza") == 8
    assert lora_rank(make(made, tmp_path / "x")) == 32
