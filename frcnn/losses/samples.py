"""What a loss is given: everything known about the samples that a sampler kept.

Shape letters: K kept samples of the batch, P positives among them, C foreground classes.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Per = Literal["sample", "positive"] | float


@dataclass
class Samples:
    """Kept samples, with gradient where the network made the value; float32 throughout.

    Attributes:
        logits: [K, C+1] class logits, column 0 = background (at the RPN ``[0, x]``).
        labels: [K] int64, 0 background, 1..C.
        weights: [K] > 0, from the sampler.
        ious: [K] IoU of anchor or proposal with its object.
        positive: [P] rows of the positives among the K.
        deltas: [P, 4] predicted box deltas of the labelled class.
        targets: [P, 4] encoded deltas of the matched objects.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    ious: Tensor
    positive: Tensor
    deltas: Tensor
    targets: Tensor


class ClassLoss(Protocol):
    """A classification loss: unreduced values, normalizer, and the scores inference must use."""

    def __call__(self, samples: Samples) -> Tensor:
        """[K] unweighted losses."""

    def normalizer(self, samples: Samples) -> float | Tensor:
        """Scalar > 0 that the weighted sum is divided by."""

    def scores(self, logits: Tensor) -> Tensor:
        """[K, C+1] logits -> [K, C+1] scores in [0, 1]."""


class BoxLoss(Protocol):
    """A box regression loss over the positives."""

    def __call__(self, samples: Samples) -> Tensor:
        """[P] losses, summed over the four coordinates."""

    def normalizer(self, samples: Samples) -> float | Tensor:
        """Scalar > 0 that the sum is divided by."""


def check_per(per: Per) -> None:
    """Raise ValueError unless ``per`` is "sample", "positive" or a constant above 0."""
    if per in ("sample", "positive") or (not isinstance(per, str) and per > 0):
        return
    raise ValueError(f"per must be sample, positive or a number above 0, got {per!r}")


def divisor(samples: Samples, per: Per) -> float:
    """What the loss is divided by: kept samples or positives, at least 1, or a constant."""
    if not isinstance(per, str):
        return float(per)
    return float(max(1, len(samples.labels if per == "sample" else samples.positive)))
