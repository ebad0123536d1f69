"""Whether vLLM can read a model straight from an object store."""

import sys
from pathlib import Path

import pytest
from sive_adapters.streaming import CORE, SCHEMES, streamed, streamer_modules

ALL = frozenset({CORE, *SCHEMES.values()})


@pytest.mark.parametrize("model", ["s3://bucket/qwen", "gs://bucket/qwen", "az://container/qwen"])
def test_a_model_in_a_bucket_is_streamed_where_the_engine_can(model: str) -> None:
    """Nothing is written to a disk in between."""
    assert streamed(model, ALL) == {"model": model, "load-format": "runai_streamer"}


@pytest.mark.parametrize(
    ("model", "modules"),
    [
        ("Qwen/Qwen2.5-14B-Instruct", ALL),
        ("/models/qwen", ALL),
        ("hf://Qwen/Qwen2.5-14B-Instruct", ALL),
        ("s3://bucket/qwen", frozenset()),
        ("s3://bucket/qwen", frozenset({CORE})),
        ("s3://bucket/qwen", ALL - {CORE}),
        ("gs://bucket/qwen", frozenset({CORE, SCHEMES["s3"]})),
    ],
)
def test_everything_else_is_fetched_first(model: str, modules: frozenset[str]) -> None:
    """Also where the part for this kind of store is missing."""
    assert streamed(model, modules) is None


def test_the_engines_own_python_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this program has installed says nothing of the engine."""
    (tmp_path / f"{CORE}.py").touch()
    (tmp_path / f"{SCHEMES['s3']}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert streamer_modules(Path(sys.executable)) == {CORE, SCHEMES["s3"]}


def test_a_python_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    """The engine's own error says so better, later."""
    assert streamer_modules(tmp_path / "python") == frozenset()
