"""Safetensors files read with numpy alone: the header, and tensors as views of the mapped file."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sive.errors import LocalModelError

MAX_HEADER_BYTES = 100_000_000
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Safetensors' name of a type: how its bytes are read. BF16 is the upper half of a float32."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies in its file: ``start`` and ``size`` in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class SafeTensors:
    """One ``.safetensors`` file; reading a tensor touches only the pages that are used.

    Raises:
        LocalModelError: not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path)
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def view(self, name: str) -> Array:
        """Return a tensor as it lies in the file; BF16 as uint16, see ``as_float32``.

        Raises:
            LocalModelError: no such tensor, or of a type that is not read.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise LocalModelError(f"{self.path} has no tensor {name!r}: is this a GPT-2 model?")
        if tensor.dtype not in DTYPES:
            raise LocalModelError(
                f"{self.path}: tensor {name!r} is {tensor.dtype}, readable are {', '.join(DTYPES)}"
            )
        raw = self._bytes[tensor.start : tensor.start + tensor.size]
        return raw.view(DTYPES[tensor.dtype]).reshape(tensor.shape)


def as_float32(values: Array) -> npt.NDArray[np.float32]:
    """Return a copy as float32; uint16 is taken for BF16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, checked against the file's size.

    Raises:
        LocalModelError: not a whole safetensors file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(entry, 8 + length) for name, entry in entries.items()}
        size = path.stat().st_size
        _check(tensors, size)
    except OSError as exc:
        raise LocalModelError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise LocalModelError(f"{path} is not a whole safetensors file ({exc}): download it again") from exc
    return tensors


def _tensor(entry: dict[str, Any], base: int) -> Tensor:
    begin, end = entry["data_offsets"]
    return Tensor(entry["dtype"], tuple(entry["shape"]), base + begin, end - begin)


def _check(tensors: dict[str, Tensor], file_size: int) -> None:
    for name, tensor in tensors.items():
        if tensor.start + tensor.size > file_size:
            raise ValueError(f"it ends before tensor {name!r} does")
        if tensor.dtype in DTYPES and tensor.size != math.prod(tensor.shape) * int(DTYPES[tensor.dtype][2:]):
            raise ValueError(f"tensor {name!r} has {tensor.size} bytes for shape {list(tensor.shape)}")
