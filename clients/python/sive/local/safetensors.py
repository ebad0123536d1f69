"""Safetensors files read with numpy alone: the header, and tensors as views of the mapped file."""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sive.errors import LocalModelError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 8
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


def read_header(path: Path, max_header_bytes: int = MAX_HEADER_BYTES) -> dict[str, Tensor]:
    """Return the tensors of a file by name, checked against the file's size as safetensors itself does.

    A file of a stranger costs no more memory than a few times ``max_header_bytes``.

    Raises:
        LocalModelError: not a whole safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(max_header_bytes, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = _entries(file.read(length))
        tensors = {name: _tensor(entry, 8 + length) for name, entry in entries.items()}
        _check(tensors, 8 + length, size)
    except OSError as exc:
        raise LocalModelError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as exc:
        raise LocalModelError(f"{path} is not a whole safetensors file ({exc}): download it again") from exc
    return tensors


def _entries(header: bytes) -> dict[str, dict[str, Any]]:
    # A tensor takes three brackets and sixty bytes or more; a header of brackets would be gigabytes of lists.
    if header.count(b"[") + header.count(b"{") > len(header) // 16 + 16:
        raise ValueError("its header is no list of tensors")
    entries = json.loads(header, object_pairs_hook=_unique)
    entries.pop("__metadata__", None)
    return dict(entries)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("its header has a name twice")
    return values


def _tensor(entry: dict[str, Any], base: int) -> Tensor:
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    numbers = (begin, end - begin, *shape)
    if len(shape) > MAX_DIMS or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"a tensor of shape {str(shape[:MAX_DIMS])[:80]} from {begin} to {end}")
    return Tensor(str(entry["dtype"]), tuple(shape), base + begin, end - begin)


def _check(tensors: dict[str, Tensor], start: int, file_size: int) -> None:
    """Every byte after the header belongs to one tensor."""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != start:
            raise ValueError(f"tensor {name[:80]!r} does not begin where the one before ends")
        start += tensor.size
        if start > file_size:
            raise ValueError(f"it ends before tensor {name[:80]!r} does")
        if tensor.dtype in DTYPES and tensor.size != math.prod(tensor.shape) * int(DTYPES[tensor.dtype][2:]):
            raise ValueError(
                f"tensor {name[:80]!r} has {tensor.size} bytes for shape {str(list(tensor.shape))[:80]}"
            )
    if start != file_size:
        raise ValueError(f"{file_size - start} bytes at its end belong to no tensor")
