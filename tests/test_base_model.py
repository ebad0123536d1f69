"""What an adapter must fit is read from the base model's own weights, or told by its configuration."""

import json
from pathlib import Path

import pytest
from sive.errors import AdapterError
from sive_adapters.base_model import read_base_model

from tests.conftest import TINY
from tests.lab.adapters import write_raw

QWEN_14B = {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
}
PROJECTIONS_14B = {
    "self_attn.q_proj": (5120, 5120),
    "self_attn.k_proj": (5120, 1024),
    "self_attn.v_proj": (5120, 1024),
    "self_attn.o_proj": (5120, 5120),
    "mlp.gate_proj": (5120, 13824),
    "mlp.up_proj": (5120, 13824),
    "mlp.down_proj": (13824, 5120),
}


def configured(folder: Path, **config: object) -> Path:
    """Write a model folder with nothing but a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(QWEN_14B | config))
    return folder


def test_weights_and_configuration_say_the_same(tmp_path: Path) -> None:
    """For Llama's relatives the names and shapes in the headers are those that config.json implies."""
    told = configured(tmp_path / "x", **json.loads((TINY / "base" / "config.json").read_text()))
    from_weights, from_config = read_base_model(str(TINY / "base")), read_base_model(str(told))
    assert from_weights is not None
    assert from_config is not None
    assert from_weights.modules == from_config.modules
    assert len(from_weights.modules) == 4 * 7


def test_a_14b_is_told_by_its_configuration(tmp_path: Path) -> None:
    """All 336 modules of Qwen2.5-14B."""
    base = read_base_model(str(configured(tmp_path / "x")))
    assert base is not None
    assert len(base.modules) == 48 * 7
    for name, shape in PROJECTIONS_14B.items():
        assert base.modules[f"model.layers.47.{name}"] == shape


def test_heads_may_be_wider_than_the_model(tmp_path: Path) -> None:
    """Qwen3 states ``head_dim``; without ``num_key_value_heads`` every head has its own."""
    base = read_base_model(
        str(configured(tmp_path / "x", model_type="qwen3", head_dim=160, num_key_value_heads=None))
    )
    assert base is not None
    assert base.modules["model.layers.0.self_attn.q_proj"] == (5120, 6400)
    assert base.modules["model.layers.0.self_attn.k_proj"] == (5120, 6400)
    assert base.modules["model.layers.0.self_attn.o_proj"] == (6400, 5120)


def test_a_model_in_the_hubs_cache_is_known_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id is looked up where the hub's client would have put it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert read_base_model("org/model") is None
    assert read_base_model("../../model") is None
    cached = tmp_path / "models--org--model"
    configured(cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    base = read_base_model("org/model")
    assert base is not None
    assert (base.name, len(base.modules)) == ("org/model", 48 * 7)
    assert read_base_model("org/model", "v2") is None


def test_packed_weights_are_told_by_the_configuration(tmp_path: Path) -> None:
    """Four-bit weights have shapes of their own; embeddings are no linear layers."""
    folder = configured(tmp_path / "x", num_hidden_layers=1)
    entry = {"shape": [100, 1], "data_offsets": [0, 100]}
    name = "model.layers.0.self_attn.q_proj.weight"
    write_raw(folder, json.dumps({name: entry | {"dtype": "U8"}}).encode(), bytes(100))
    base = read_base_model(str(folder))
    assert base is not None
    assert base.modules["model.layers.0.self_attn.q_proj"] == (5120, 5120)
    for embedding in ("model.embed_tokens", "lm_head"):
        assert embedding not in base.modules


def test_half_a_download_is_told_by_the_configuration(tmp_path: Path) -> None:
    """Shards that the index names and that are not here would look like layers that the base has not."""
    folder = configured(tmp_path / "x", num_hidden_layers=2)
    entry = {"dtype": "F8_E4M3", "shape": [10, 10], "data_offsets": [0, 100]}
    write_raw(folder, json.dumps({"model.layers.0.self_attn.q_proj.weight": entry}).encode(), bytes(100))
    (folder / "adapter_model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    base = read_base_model(str(folder))
    assert base is not None
    assert len(base.modules) == 14
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shards["a"]}}))
    base = read_base_model(str(folder))
    assert base is not None
    assert base.modules == {"model.layers.0.self_attn.q_proj": (10, 10)}


def test_what_is_not_known_is_none(tmp_path: Path) -> None:
    """No folder, an empty one, and a family whose layers nobody here knows."""
    assert read_base_model(str(tmp_path / "nowhere")) is None
    assert read_base_model(str(tmp_path)) is None
    assert read_base_model(str(configured(tmp_path / "x", model_type="mamba"))) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps(QWEN_14B | {"hidden_size": 0}), "hidden_size = 0"),
    ],
)
def test_a_base_that_cannot_be_read_is_explained(tmp_path: Path, config: str, words: str) -> None:
    """One line names the file or the key."""
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(AdapterError, match=words):
        read_base_model(str(tmp_path))


def test_broken_weights_of_a_base_are_explained(tmp_path: Path) -> None:
    """Half a file is no base model."""
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(AdapterError, match="the base model cannot be read"):
        read_base_model(str(tmp_path))
