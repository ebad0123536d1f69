"""How far two readings of one model may be apart, from the numbers that its engine computes with."""

from dataclasses import dataclass

UNIT_ROUNDOFF = {
    "float32": 2**-24,
    "float": 2**-24,
    "float16": 2**-11,
    "half": 2**-11,
    "bfloat16": 2**-8,
}
"""By vLLM's name of a dtype: half of how far neighbouring numbers are apart, relative to them."""

LARGEST_LOGIT = 32.0
"""More than logits usually reach."""

LEAST_DIFFERENCE, LEAST_DRIFT = 0.05, 0.25
"""In nats, however exact the engine. In float32 a reading repeats itself to 1e-5 (measured on a CPU)."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """In nats, at the token that differs most.

    ``min_difference``: at least so far an adapter is from its base. ``max_drift``: at most so far from what
    it was when it was accepted; one that is nearer to its base than twice that gets half the way instead.
    """

    min_difference: float
    max_drift: float


def tolerance(dtype: str) -> Tolerance:
    """Return what is to be expected of an engine; of one that chooses its dtype itself, the coarsest.

    The last thing that an engine rounds are its logits. One of size ``L`` is wrong by up to ``u * L``, so two
    readings of it differ by up to ``2 * u * L`` when a probe shared its batch with others and sums came out
    in another order: 4e-6, 0.03 and 0.25 nats for float32, float16 and bfloat16. An adapter has to be twice
    as far from its base, so that half the way is still more than noise. This is derived, not measured on a
    GPU; what the layers before add is taken to be covered by logits that are mostly smaller than 32.
    """
    noise = 2 * UNIT_ROUNDOFF.get(dtype, UNIT_ROUNDOFF["bfloat16"]) * LARGEST_LOGIT
    return Tolerance(max(LEAST_DIFFERENCE, 2 * noise), max(LEAST_DRIFT, 2 * noise))
