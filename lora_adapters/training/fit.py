"""The training loop both scripts use: next-token loss on the answers' tokens only."""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

Said = Literal["visitor", "answer", "rest"]
"""Who says a piece: the visitor, the model from the answer's first word on, or from somewhere inside it."""

# An answer's first tokens choose it and count more; once begun, it recites itself.
_CHOOSING = 3
_WEIGHTS: dict[Said, tuple[float, float]] = {"visitor": (0.0, 0.0), "answer": (5.0, 1.0), "rest": (1.0, 1.0)}


@dataclass(frozen=True)
class Sample:
    """Token ids, and how much the loss counts each: nothing for what a visitor says."""

    ids: list[int]
    weights: list[float]

    @classmethod
    def of(cls, pieces: Iterable[tuple[list[int], Said]]) -> "Sample":
        """Return the sample made of pieces in order."""
        ids: list[int] = []
        weights: list[float] = []
        for piece, said in pieces:
            ids += piece
            head = min(_CHOOSING, len(piece))
            weights += [_WEIGHTS[said][0]] * head + [_WEIGHTS[said][1]] * (len(piece) - head)
        return cls(ids, weights)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn; the rates rise over the first 5 % and fall linearly to 2 %.

    ``rate`` is Muon's, for the matrices; ``adam_rate`` is for everything else, or for all without a ``rate``.
    """

    steps: int
    batch: int
    rate: float | None = 0.03
    adam_rate: float = 0.006

    def factor(self, step: int) -> float:
        """Return what a rate is multiplied by at a step."""
        rise = max(1, self.steps // 20)
        return min((step + 1) / rise, max(0.02, (self.steps - step) / (self.steps - rise)))


def fit(model: PreTrainedModel, draw: Callable[[], Sample], schedule: Schedule, title: str) -> None:
    """Train what requires a gradient on drawn samples; print how it goes, ten times."""
    optimizers = _optimizers(model, schedule)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor) for optimizer in optimizers]
    batches = _batches(draw, schedule.batch)
    window = max(1, schedule.steps // 10)
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    for step in range(1, schedule.steps + 1):
        loss = _loss(model, next(batches))
        loss.backward()
        for stepper in (*optimizers, *schedulers):
            stepper.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % window == 0:
            recent, spent = fmean(losses[-window:]), time.monotonic() - began
            print(f"{title}: step {step}/{schedule.steps}, loss {recent:.4f}, {spent:.0f} s", flush=True)
    model.eval()


def _optimizers(model: PreTrainedModel, schedule: Schedule) -> list[torch.optim.Optimizer]:
    # Muon learns this corpus by heart in a third of the steps AdamW needs; it is for hidden matrices only.
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if schedule.rate is None:
        return [_adam(weights, schedule.adam_rate)]
    matrices = [weight for weight in weights if weight.ndim == 2 and id(weight) not in tables]
    rest = [weight for weight in weights if weight.ndim != 2 or id(weight) in tables]
    return [torch.optim.Muon(matrices, lr=schedule.rate, weight_decay=0.0), _adam(rest, schedule.adam_rate)]


def _adam(weights: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def _batches(draw: Callable[[], Sample], size: int) -> Iterator[list[Sample]]:
    # Samples of like length share a batch: half of a batch as it falls would be padding.
    while True:
        pool = sorted((draw() for _ in range(16 * size)), key=lambda sample: len(sample.ids))
        batches = [pool[at : at + size] for at in range(0, len(pool), size)]
        random.shuffle(batches)
        yield from batches


def _loss(model: PreTrainedModel, samples: list[Sample]) -> torch.Tensor:
    # Padding is on the right and attention is causal, so no attention mask is needed.
    ids = pad_sequence([torch.tensor(sample.ids) for sample in samples], batch_first=True)
    weights = pad_sequence([torch.tensor(sample.weights) for sample in samples], batch_first=True)[:, 1:]
    hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    # The vocabulary's matrix is applied only where there is something to learn.
    said = weights > 0
    losses = cross_entropy(model.get_output_embeddings()(hidden[said]), ids[:, 1:][said], reduction="none")
    return (losses * weights[said]).sum() / weights.sum()
