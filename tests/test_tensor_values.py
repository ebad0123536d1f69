"""The largest magnitude of a tensor is found by its bits, whatever the type, the sign and the place."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive.errors import LocalModelError
from sive.local.safetensors import Tensor, read_header
from sive_adapters.findings import Findings
from sive_adapters.tensor_values import CHUNK_BYTES, largest_magnitudes

from tests.lab.adapters import write

BITS = {"float32": np.uint32, "float16": np.uint16, "uint16": np.uint16}


def largest(folder: Path, **tensors: npt.NDArray[np.generic]) -> tuple[dict[str, float], list[str]]:
    """Write tensors, and return their largest magnitudes and what was found."""
    write(folder, {}, tensors)
    file = folder / "adapter_model.safetensors"
    findings = Findings()
    values = largest_magnitudes(file, read_header(file), findings, told=lambda progress: None)
    return values, [finding.message for finding in findings.found()]


@pytest.mark.parametrize("name", BITS)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30))
def test_any_bits_are_measured_as_numpy_measures_them(
    tmp_path_factory: pytest.TempPathFactory, name: str, bits: list[int]
) -> None:
    """Every pattern of bits, NaN, Inf, denormal and minus zero among them."""
    array = np.array(bits, np.uint64).astype(BITS[name]).view(name)
    values, found = largest(tmp_path_factory.mktemp("x"), x=array)
    numbers = (array.astype(np.uint32) << 16).view(np.float32) if name == "uint16" else array
    if np.isfinite(numbers).all():
        assert values["x"] == np.abs(numbers).max()
        assert not found
    else:
        assert not np.isfinite(values["x"])
        assert len(found) == 1


@pytest.mark.parametrize("at", [0, CHUNK_BYTES // 4 - 1, CHUNK_BYTES // 4, 3 * CHUNK_BYTES // 4, -1])
def test_a_single_value_is_found_wherever_it_is(tmp_path: Path, at: int) -> None:
    """First and last of the file and of each piece that is read."""
    array = np.full(CHUNK_BYTES, -0.5, np.float32)[: 3 * CHUNK_BYTES // 4 + 7]
    array[at] = -2.0
    assert largest(tmp_path, x=array, y=array[:1]) == ({"x": 2.0, "y": abs(array[0])}, [])
    array[at] = np.nan
    _, found = largest(tmp_path, a=array[:0], x=array)
    assert found[0].startswith("tensor 'x' has NaN or Inf")


def test_a_file_that_shrinks_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """What the header promised and the file no longer holds."""
    (tmp_path / "x").write_bytes(bytes(100))
    tensors = {"x": Tensor("F32", (1000,), 0, 4000)}
    with pytest.raises(LocalModelError, match="became shorter"):
        largest_magnitudes(tmp_path / "x", tensors, Findings(), told=lambda progress: None)
