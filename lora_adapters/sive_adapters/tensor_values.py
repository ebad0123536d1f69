"""The values in an adapter's tensors: finite, in range, and not all zero; read once, without conversion."""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from sive.errors import LocalModelError
from sive.local.safetensors import DTYPES, Tensor, as_float32

from sive_adapters.findings import Findings
from sive_adapters.lora_config import shown
from sive_adapters.progress import Progress, Told

CHUNK_BYTES = 2**20
"""Stays in a core's cache for the second look at it."""

TOLD_EVERY_S = 0.1


def largest_magnitudes(
    file: Path, tensors: Mapping[str, Tensor], findings: Findings, *, told: Told
) -> dict[str, float]:
    """Return the largest magnitude in each tensor; those that are not finite are reported.

    Raises:
        LocalModelError: the file became shorter meanwhile.
    """
    largest: dict[str, float] = {}
    total = sum(tensor.size for tensor in tensors.values())
    done, told_at = 0, time.monotonic()
    buffer = bytearray(CHUNK_BYTES)
    with file.open("rb") as weights:
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            bits = 0
            for chunk in _chunks(weights, tensor, buffer):
                bits = max(bits, _largest_bits(chunk))
                done += chunk.nbytes
                if time.monotonic() - told_at >= TOLD_EVERY_S:
                    told_at = time.monotonic()
                    told(Progress(f"{file.parent.name}: check", done, total))
            largest[name] = _as_float(bits, tensor.dtype)
            if not math.isfinite(largest[name]):
                findings.add(
                    "not_finite",
                    f"tensor {shown(name)} has NaN or Inf, which would spoil others' answers: train again",
                )
    told(Progress(f"{file.parent.name}: check", done, total))
    return largest


def _chunks(weights: BinaryIO, tensor: Tensor, buffer: bytearray) -> Iterator[npt.NDArray[np.uint]]:
    """Read a tensor as unsigned numbers; not mapped, since a mapped file that shrinks kills the process."""
    dtype = np.dtype(f"<u{DTYPES[tensor.dtype][2:]}")
    weights.seek(tensor.start)
    for start in range(0, tensor.size, len(buffer)):
        size = min(len(buffer), tensor.size - start)
        if weights.readinto(memoryview(buffer)[:size]) != size:  # type: ignore[attr-defined]  # BinaryIO lacks it
            raise LocalModelError(f"{weights.name} became shorter while it was read")
        yield np.frombuffer(buffer, dtype, size // dtype.itemsize)


def _largest_bits(bits: npt.NDArray[np.uint]) -> int:
    """Return the bits of the largest magnitude: floats are ordered as their bits are, the sign apart.

    Nothing is converted or copied: the largest positive number is the signed maximum, the largest negative
    one the unsigned maximum. Inf is above all numbers and NaN above Inf.
    """
    signed = bits.view(f"<i{bits.dtype.itemsize}")
    sign = 1 << (8 * bits.dtype.itemsize - 1)
    return max(int(signed.max()), int(bits.max()) - sign, 0)


def _as_float(bits: int, dtype: str) -> float:
    kind = DTYPES[dtype]
    number = np.array([bits], f"<u{kind[2:]}")
    return float(as_float32(number if dtype == "BF16" else number.view(kind))[0])
