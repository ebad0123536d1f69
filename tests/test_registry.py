"""``adapters.toml``: what is read from it, how mistakes in it are told, and how it is changed."""

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive.errors import AdapterError
from sive_adapters.registry import Adapter, Release, adapters_for, edit, read_adapters

from tests.conftest import ROOT, clean_environment, until

ENTRY = '[[adapter]]\nname = "spinoza"\nsource = "file:spinoza"\nbase_model = "file:base"\n'
HASHES = {"adapter_config.json": "a" * 64, "adapter_model.safetensors": "b" * 64}
PINS = f'sha256 = {{ "adapter_config.json" = "{"a" * 64}", "adapter_model.safetensors" = "{"b" * 64}" }}\n'

FULL = f"""# The voices.

# He grinds lenses.
[[adapter]]  # the first
source = "hf://org/repo@main/sub"   # where
name = "spinoza"
base_model = "Qwen/Qwen2.5-14B-Instruct"
{PINS}languages = [
  "fr",  # first
  "en",
]
system_prompt = '''
You are
# no comment
[[adapter]]
'''

[adapter.sampling]
temperature = 0.7  # warm
stop = ["\\n\\n"]

[[adapter.previous]]
source = "s3://bucket/spinoza-1"


# About Kant.
#   He walks.
[[adapter]]
name = "kant"
source = "file:kant"
base_model = "file:base"
# the end
"""


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Return an ``adapters.toml`` with one adapter."""
    file = tmp_path / "adapters.toml"
    file.write_text(ENTRY)
    return file


def refusal(file: Path) -> str:
    """Return the one line that says why the list is refused."""
    with pytest.raises(AdapterError) as caught:
        read_adapters(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_that_can_be_said_is_read(listed: Path) -> None:
    """Each key arrives, folders as absolute paths."""
    listed.write_text(FULL)
    spinoza, kant = read_adapters(listed)
    assert spinoza == Adapter(
        "spinoza",
        "Qwen/Qwen2.5-14B-Instruct",
        Release("hf://org/repo@main/sub", HASHES),
        (Release("s3://bucket/spinoza-1"),),
        "You are\n# no comment\n[[adapter]]\n",
        ("fr", "en"),
        {"temperature": 0.7, "stop": ["\n\n"]},
    )
    assert kant == Adapter("kant", str(listed.parent / "base"), Release("file:kant"))


def test_a_version_is_named_as_sha256sum_would(tmp_path: Path) -> None:
    """The digest is the one of sha256sum's lines, sorted; nothing pinned has none."""
    for name in HASHES:
        (tmp_path / name).write_text(name)
    printed = subprocess.run(["sha256sum", *HASHES], cwd=tmp_path, capture_output=True, check=True).stdout
    lines = b"".join(sorted(printed.splitlines(keepends=True)))
    digest = subprocess.run("sha256sum", input=lines, capture_output=True, check=True).stdout.decode()[:64]
    hashes = {line.split()[1]: line.split()[0] for line in lines.decode().splitlines()}
    assert Release("file:x", hashes).digest == digest
    assert Release("file:x").digest is None


def test_the_list_in_the_repository_is_true() -> None:
    """The shipped list names the philosopher whose adapter is public, not pinned since nobody has it here."""
    (spinoza,) = read_adapters(ROOT / "lora_adapters" / "adapters.toml")
    assert spinoza == Adapter(
        "spinoza", "Qwen/Qwen2.5-14B-Instruct", Release("hf://FJDaz/qwen-spinoza-niveau-b")
    )


def test_adapters_of_other_bases_are_named(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine gets the adapters of its model, paths compared resolved, and the names of the rest."""
    (listed.parent / "base").mkdir()
    (listed.parent / "spinoza").mkdir()
    listed.write_text(
        ENTRY + ENTRY.replace("spinoza", "kant").replace("file:base", "Qwen/Qwen2.5-14B-Instruct")
    )
    spinoza, kant = read_adapters(listed)
    monkeypatch.chdir(listed.parent)
    assert adapters_for((spinoza, kant), "./spinoza/../base") == ((spinoza,), ("kant",))
    assert adapters_for((spinoza, kant), "file:base") == ((spinoza,), ("kant",))
    assert adapters_for((spinoza, kant), "Qwen/Qwen2.5-14B-Instruct") == ((kant,), ("spinoza",))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (ENTRY.replace("source", "sorce"), ["'spinoza'", "'sorce'", "did you mean 'source'"]),
        (ENTRY + "sampling = { topp = 1 }", ["'spinoza'", "'topp'", "did you mean 'top_p'"]),
        (ENTRY + 'previous = [{ sorce = "file:x" }]', ["'sorce'", "did you mean 'source'"]),
        (ENTRY.replace("[[adapter]]", "[[adapters]]"), ["'adapters'", "did you mean 'adapter'"]),
        (ENTRY.replace("[[adapter]]", "[adapter]"), ["[[adapter]]"]),
        ('adapter = ["spinoza"]', ["[[adapter]]"]),
        (ENTRY.replace('base_model = "file:base"', ""), ["'spinoza'", "no base_model"]),
        (ENTRY.replace('name = "spinoza"', ""), ["no name"]),
        (ENTRY.replace('source = "file:spinoza"', "source = 3"), ["'spinoza'", "source is 3"]),
        (ENTRY.replace("file:spinoza", ""), ["'spinoza'", "source is ''"]),
        (ENTRY.replace("file:spinoza", "ftp://x/y"), ["'spinoza'", "ftp://x/y", "hf://"]),
        (ENTRY.replace("file:base", "s3://x/y"), ["base_model is 's3://x/y'", "hub id"]),
        (ENTRY.replace("file:base", "../base"), ["base_model is '../base'", "hub id"]),
        (ENTRY + ENTRY, ["two adapters", "'spinoza'"]),
        (ENTRY + ENTRY.replace('"spinoza"', '"Spinoza"'), ["two adapters", "'Spinoza'", "case"]),
        (ENTRY + 'sha256 = { "adapter_config.json" = "12" }', ["sha256", "adapter_model.safetensors"]),
        (ENTRY + PINS.replace("a" * 64, "A" * 64), ["64 lowercase hex digits"]),
        (ENTRY + PINS.replace("a" * 64, "a" * 63), ["64 lowercase hex digits"]),
        (ENTRY + PINS.replace("adapter_config.json", "../x"), ["name exactly adapter_config.json"]),
        (ENTRY + 'languages = ["French"]', ["'French'", '"fr"']),
        (ENTRY + 'languages = "fr"', ["languages is 'fr'", "list"]),
        (ENTRY + 'system_prompt = ""', ["system_prompt"]),
        (ENTRY + "previous = [" + '{ source = "file:x" },' * 6 + "]", ["previous", "5"]),
        (ENTRY + 'previous = [{ source = "x" }]', ["'spinoza'", "'x' is no source"]),
        ("[[adapter", ["is not TOML"]),
        ("x = " + "[" * 5000, ["is not TOML"]),
    ],
)
def test_a_wrong_entry_is_explained(listed: Path, entry: str, words: list[str]) -> None:
    """Every mistake is one line that names the file, the thing, its value and the way out."""
    listed.write_text(entry)
    message = refusal(listed)
    assert [word for word in (str(listed), *words) if word not in message] == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "-x",
        "x-",
        ".x",
        "x.",
        "a/b",
        "a\\b",
        "a@1",
        "a b",
        "x\n",
        "é",
        "local",
        "LOCAL",
        "a" * 65,
        "%2e",
    ],
)
def test_a_name_that_could_be_a_path_or_a_version_is_refused(listed: Path, name: str) -> None:
    """A name becomes a folder and a served model; a version is NAME@DIGEST."""
    listed.write_text(
        ENTRY.replace('name = "spinoza"', f"name = {name!r}" if name != "x\n" else 'name = "x\\n"')
    )
    assert "name is" in refusal(listed)


@pytest.mark.parametrize("name", ["a", "0", "gpt2", "Spinoza-7B_v1.2", "a" * 64])
def test_ordinary_names_are_fine(listed: Path, name: str) -> None:
    """Letters, digits, dots, lines and underlines."""
    listed.write_text(ENTRY.replace('name = "spinoza"', f'name = "{name}"'))
    assert read_adapters(listed)[0].name == name


@pytest.mark.parametrize(
    "sampling",
    [
        "temperature = 2.1",
        "temperature = -0.1",
        "temperature = nan",
        "temperature = inf",
        'temperature = "0.7"',
        "temperature = true",
        "top_p = 0",
        "top_p = 1.1",
        "top_k = -2",
        "top_k = 1.5",
        "max_tokens = 0",
        "presence_penalty = 2.5",
        "frequency_penalty = -2.5",
        "repetition_penalty = 0",
        "repetition_penalty = inf",
        'stop = ""',
        "stop = []",
        'stop = ["a", "b", "c", "d", "e"]',
        "stop = [1]",
        "seed = 9223372036854775808",
        "seed = 0.5",
        "min_p = 0.1",
    ],
)
def test_sampling_that_an_engine_would_refuse_is_refused(listed: Path, sampling: str) -> None:
    """Types and bounds are vLLM's and OpenAI's: a default must never fail a request."""
    listed.write_text(f"{ENTRY}sampling = {{ {sampling} }}\n")
    key = sampling.split(" ")[0]
    assert f"'{key}'" in refusal(listed) or f"sampling.{key} is" in refusal(listed)


@pytest.mark.parametrize(
    "sampling",
    [
        "temperature = 0",
        "temperature = 2.0",
        "top_p = 1",
        "top_k = -1",
        "top_k = 0",
        "max_tokens = 1",
        "presence_penalty = -2",
        "frequency_penalty = 2",
        "repetition_penalty = 1.1",
        'stop = "x"',
        'stop = ["a", "b", "c", "d"]',
        "seed = -9223372036854775808",
    ],
)
def test_sampling_at_its_bounds_is_fine(listed: Path, sampling: str) -> None:
    """The bounds belong to what is allowed."""
    listed.write_text(f"{ENTRY}sampling = {{ {sampling} }}\n")
    assert list(read_adapters(listed)[0].sampling) == [sampling.split(" ")[0]]


def test_a_list_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are no text are named."""
    assert str(tmp_path / "adapters.toml") in refusal(tmp_path / "adapters.toml")
    assert str(tmp_path) in refusal(tmp_path)
    (tmp_path / "adapters.toml").write_bytes(b"name = '\xff'")
    assert "not UTF-8" in refusal(tmp_path / "adapters.toml")


def with_release(name: str, release: Release) -> Any:
    """A change that gives an adapter another release."""
    return lambda adapters: tuple(replace(a, release=release) if a.name == name else a for a in adapters)


def test_a_change_leaves_all_other_text_alone(listed: Path) -> None:
    """A new release changes its lines; comments, order, spaces and other entries stay."""
    listed.write_text(FULL)
    edit(
        listed,
        with_release(
            "spinoza", Release("hf://org/repo@main/sub", HASHES | {"adapter_config.json": "c" * 64})
        ),
    )
    text = listed.read_text()
    assert text.replace("c" * 64, "a" * 64).replace('{"adapter', '{ "adapter').replace('b"}', 'b" }') == FULL
    edit(listed, with_release("kant", Release("file:kant-2", HASHES)))
    assert listed.read_text().startswith(text[: text.index('[[adapter]]\nname = "kant"')])
    assert listed.read_text().endswith(
        'base_model = "file:base"\n' + PINS.replace("{ ", "{").replace(" }", "}") + "# the end\n"
    )


def test_an_entry_goes_with_the_comment_above_it(listed: Path) -> None:
    """Other comments stay, and what remains is what was there."""
    listed.write_text(FULL)
    edit(listed, lambda adapters: adapters[1:])
    assert listed.read_text() == "# The voices.\n\n" + FULL[FULL.index("# About Kant") :]
    listed.write_text(FULL)
    edit(listed, lambda adapters: adapters[:1])
    assert listed.read_text().endswith('source = "s3://bucket/spinoza-1"\n\n\n# the end\n')
    edit(listed, lambda adapters: ())
    assert listed.read_text() == "# The voices.\n\n\n\n# the end\n"


def test_nothing_changed_is_nothing_written(listed: Path) -> None:
    """The very file stays."""
    before = listed.stat()
    assert edit(listed, lambda adapters: adapters) == read_adapters(listed)
    assert (listed.stat().st_ino, listed.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_list_can_be_begun(tmp_path: Path) -> None:
    """A list that is not there yet is an empty one."""
    file = tmp_path / "adapters.toml"
    adapter = Adapter("kant", str(tmp_path / "base"), Release("file:kant"))
    assert edit(file, lambda adapters: (*adapters, adapter)) == (adapter,)
    assert (
        file.read_text()
        == f'[[adapter]]\nname = "kant"\nsource = "file:kant"\nbase_model = "file:{tmp_path}/base"\n'
    )


def test_what_may_not_be_listed_is_not_written(listed: Path) -> None:
    """A change is checked as a list is, before anything is replaced."""
    bad = Adapter("../x", "org/base", Release("file:x"))
    with pytest.raises(AdapterError, match="name is"):
        edit(listed, lambda adapters: (*adapters, bad))
    with pytest.raises(AdapterError, match="two adapters"):
        edit(listed, lambda adapters: (*adapters, replace(adapters[0], name="SPINOZA")))
    assert listed.read_text() == ENTRY


def test_a_list_written_otherwise_is_not_changed(listed: Path) -> None:
    """An array of tables in one line is read, but a change to it is refused in words."""
    listed.write_text('adapter = [{ name = "a", source = "file:a", base_model = "file:base" }]')
    with pytest.raises(AdapterError, match=r"\[\[adapter\]\]"):
        edit(listed, lambda adapters: ())
    assert len(read_adapters(listed)) == 1


def test_the_new_list_is_another_file(listed: Path) -> None:
    """Who reads while it is changed reads the old list to its end."""
    with listed.open() as old:
        edit(listed, with_release("spinoza", Release("file:other")))
        assert old.read() == ENTRY


def test_a_text_that_ends_like_a_comment_is_none(listed: Path) -> None:
    """The last line of a text may begin with a number sign; it stays with its adapter."""
    prompt = 'system_prompt = """\n# Be brief.\n# Always."""\n'
    listed.write_text(ENTRY + prompt + "# Kant\n" + ENTRY.replace("spinoza", "kant"))
    edit(listed, with_release("spinoza", Release("file:other")))
    assert listed.read_text().count(prompt + "# Kant\n[[adapter]]") == 1
    edit(listed, lambda adapters: adapters[:1])
    assert listed.read_text() == ENTRY.replace("file:spinoza", "file:other") + prompt


@pytest.mark.parametrize("prompt", ["a\r\nb", "a\n\r", '"""\n', "\\\n", "\n\n", "\x7f\n\t"])
def test_a_text_over_lines_is_written_as_it_is(listed: Path, prompt: str) -> None:
    """Whatever stands at the ends of its lines."""
    edit(listed, lambda adapters: (replace(adapters[0], system_prompt=prompt),))
    assert read_adapters(listed)[0].system_prompt == prompt


def test_what_cannot_be_changed_safely_is_left(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the text that was made does not say what was meant, nothing is written."""
    from sive_adapters import toml_blocks

    monkeypatch.setattr(toml_blocks, "rewritten", lambda text, kept, added: text)
    with pytest.raises(AdapterError, match="cannot be changed safely: edit it by hand"):
        edit(listed, with_release("spinoza", Release("file:other")))
    assert listed.read_text() == ENTRY


def test_mode_and_link_stay(listed: Path) -> None:
    """The new file has the old one's mode, and a link to the list stays one."""
    listed.chmod(0o640)
    link = listed.parent / "link.toml"
    link.symlink_to(listed.name)
    edit(link, with_release("spinoza", Release("file:other")))
    assert link.is_symlink()
    assert stat.S_IMODE(listed.stat().st_mode) == 0o640
    assert read_adapters(listed)[0].release.source == "file:other"


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """The error is ours, one line."""
    (tmp_path / "none").write_text("no folder")
    with pytest.raises(AdapterError, match="cannot write"):
        edit(tmp_path / "none" / "adapters.toml", lambda adapters: (Adapter("a", "b/c", Release("file:x")),))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    prompt=st.none() | TEXTS,
    sampling=st.fixed_dictionaries(
        {}, optional={"temperature": st.floats(0, 2), "stop": TEXTS | st.lists(TEXTS, min_size=1, max_size=4)}
    ),
    previous=st.lists(st.sampled_from([Release("file:a"), Release("hf://a/b", HASHES)]), max_size=5),
    languages=st.lists(st.sampled_from(["fr", "pt-BR"]), max_size=2),
    which=st.sampled_from(["spinoza", "kant", "new"]),
)
def test_whatever_may_be_listed_can_be_written(
    tmp_path_factory: pytest.TempPathFactory, which: str, prompt: str | None, **keys: Any
) -> None:
    """Every value survives being written into a list with comments and tables of its own, and read again."""
    file = tmp_path_factory.mktemp("list") / "adapters.toml"
    file.write_text(FULL)
    adapter = Adapter(
        which,
        "org/base",
        Release("hf://c/d", HASHES),
        tuple(keys["previous"]),
        prompt,
        tuple(keys["languages"]),
        keys["sampling"],
    )
    others = tuple(one for one in read_adapters(file) if one.name != which)
    written = edit(file, lambda adapters: (*(one for one in adapters if one.name != which), adapter))
    assert {one.name: one for one in written} == {one.name: one for one in (*others, adapter)}
    assert all(line in file.read_text() for line in ("# The voices.", "# the end"))


ADDER = """
import pathlib, sys
from sive_adapters.registry import Adapter, Release, edit
path, prefix = pathlib.Path(sys.argv[1]), sys.argv[2]
for number in range(20):
    adapter = Adapter(f"{prefix}{number}", "org/base", Release("file:x"))
    edit(path, lambda adapters: (*adapters, adapter))
"""


def python(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run a script in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(PYTHONPATH=os.pathsep.join(sys.path)),
    )


def test_two_writers_at_once_lose_nothing(listed: Path) -> None:
    """Every change of two processes is there at the end."""
    writers = [python(ADDER, listed, prefix) for prefix in "ab"]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    names = {adapter.name for adapter in read_adapters(listed)}
    assert names == {"spinoza"} | {f"{prefix}{number}" for prefix in "ab" for number in range(20)}


WRITER = """
import itertools, pathlib, sys
from dataclasses import replace
from sive_adapters.registry import Release, edit
path = pathlib.Path(sys.argv[1])
for number in itertools.count():
    release = Release(f"file:{number}")
    edit(path, lambda adapters: tuple(replace(one, release=release) for one in adapters))
    print(number, flush=True)
"""


def test_kill_9_leaves_a_whole_list(listed: Path) -> None:
    """Whenever a writer is killed, the list is the old one or the new one, and can be changed again."""
    listed.write_text("".join(ENTRY.replace("spinoza", f"a{n}") + "# comment\n" * 50 for n in range(10)))
    for round_ in range(1, 6):
        process = python(WRITER, listed)
        assert process.stdout is not None
        with process.stdout:
            for _ in range(round_):  # somewhere else in a change each time
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            process.wait()
        adapters = read_adapters(listed)
        assert len(adapters) == 10
        assert all(adapter.release == adapters[0].release for adapter in adapters)
    edit(listed, lambda adapters: adapters[:1])
    until(lambda: len(read_adapters(listed)) == 1)
