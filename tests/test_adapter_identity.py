"""Whether a reading of the probe is an adapter's own: against its base, against before, by its dtype."""

import pytest
from sive_adapters.identity import Fingerprint, misidentified
from sive_adapters.tolerance import tolerance

BASE = Fingerprint(tuple({"1": -1.0 - place, "2": -3.0} for place in range(40)))


def apart(nats: float, of: Fingerprint = BASE) -> Fingerprint:
    """A reading that differs at one token by so much."""
    first, *others = of.positions
    return Fingerprint(({**first, "1": first["1"] - nats}, *others))


def why(read: Fingerprint, dtype: str, stored: Fingerprint | None = None) -> str:
    """What is said of a reading."""
    return misidentified("spinoza", read, base=BASE, stored=stored, allows=tolerance(dtype))


@pytest.mark.parametrize(
    ("dtype", "noise"), [("float32", 4e-6), ("float16", 0.031), ("bfloat16", 0.249), ("auto", 0.249)]
)
def test_rounding_alone_is_neither_an_adapter_nor_another_one(dtype: str, noise: float) -> None:
    """A base that was rounded otherwise is still the base; an adapter that was is still itself."""
    assert "reads like its base model" in why(apart(noise), dtype)
    just_far_enough = apart(tolerance(dtype).min_difference * 1.001)
    assert why(just_far_enough, dtype) == ""
    assert why(apart(noise * 0.999, just_far_enough), dtype, just_far_enough) == ""
    assert why(apart(-noise * 0.5, apart(3.0)), dtype, apart(3.0)) == ""


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "auto", "float8_of_tomorrow"])
def test_another_voice_is_told_whatever_the_rounding(dtype: str) -> None:
    """Half a nat from the base is an adapter, and more than half a nat from before is another one."""
    assert why(apart(0.51), dtype) == ""
    assert "does not read as when it was accepted" in why(apart(3.6), dtype, apart(3.0))
    assert "does not read as when it was accepted" in why(apart(0.95), dtype, apart(0.6))


def test_what_was_exact_stays_exact() -> None:
    """In float32 nothing is allowed that bfloat16 needs."""
    assert why(apart(0.06), "float32") == ""
    assert "reads like its base" in why(apart(0.06), "bfloat16")
    assert "does not read as when" in why(apart(3.3), "float32", apart(3.0))
    assert why(apart(3.3), "bfloat16", apart(3.0)) == ""
