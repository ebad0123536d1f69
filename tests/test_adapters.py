"""Listed adapters in local folders: what the engine is started with."""

import json
from pathlib import Path

import pytest
from sive.errors import AdapterError
from sive_adapters import read_adapters

ENTRY = '[[adapter]]\nname = "spinoza"\nsource = "file:spinoza"\nbase_model = "file:base"\n'


def write_adapter(folder: Path, **config: object) -> None:
    """Write a PEFT folder with a configuration and some bytes as weights."""
    folder.mkdir()
    described = {"peft_type": "LORA", "r": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(described))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Return an ``adapters.toml`` with one good adapter and its base beside it."""
    write_adapter(tmp_path / "spinoza")
    (tmp_path / "base").mkdir()
    file = tmp_path / "adapters.toml"
    file.write_text(ENTRY)
    return file


def refusal(file: Path) -> str:
    """Return the one line that says why the list is refused."""
    with pytest.raises(AdapterError) as caught:
        read_adapters(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sources_are_relative_to_the_list(listed: Path) -> None:
    """An adapter's folder and a ``file:`` base become absolute paths, and its rank is read."""
    (adapter,) = read_adapters(listed)
    assert adapter.name == "spinoza"
    assert adapter.path == listed.parent / "spinoza"
    assert adapter.base_model == str(listed.parent / "base")
    assert adapter.rank == 4
    assert adapter.weights_file.read_bytes() == b"weights"


def test_the_rank_is_the_largest_of_all_layers(listed: Path) -> None:
    """``rank_pattern`` gives single layers a rank above ``r``."""
    write_adapter(listed.parent / "kant", r=8, rank_pattern={"q_proj": 32})
    listed.write_text(ENTRY.replace("spinoza", "kant"))
    assert read_adapters(listed)[0].rank == 32


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (ENTRY.replace("file:spinoza", "hf://me/spinoza"), ["'hf://me/spinoza'", "cannot be served yet"]),
        (ENTRY.replace("file:spinoza", "file:nowhere"), ["'spinoza'", "no folder", "nowhere"]),
        (ENTRY.replace("source", "sorce"), ["'spinoza'", "'sorce'", "did you mean 'source'"]),
    ],
)
def test_what_is_not_here_is_explained(listed: Path, entry: str, words: list[str]) -> None:
    """One line names the adapter, what its source is, and the way out."""
    listed.write_text(entry)
    message = refusal(listed)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_is_not_complete_is_refused(listed: Path, missing: str) -> None:
    """An adapter without its configuration or its weights is refused, and the file is named."""
    (listed.parent / "spinoza" / missing).unlink()
    assert missing in refusal(listed)


@pytest.mark.parametrize("config", [{"peft_type": "LOKR"}, {"r": 0}, {"r": "8"}, {"r": True}])
def test_what_vllm_would_serve_wrongly_is_refused(listed: Path, config: dict[str, object]) -> None:
    """Another kind of adapter, or one without a usable rank, is never handed to the engine."""
    write_adapter(listed.parent / "odd", **config)
    listed.write_text(ENTRY.replace("spinoza", "odd"))
    assert "adapter_config.json" in refusal(listed)
