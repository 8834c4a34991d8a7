"""What a loss is given: everything known about the samples that a sampler kept.

Shape letters: K kept samples of the batch, P positives among them, C foreground classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

import torch
from torch import Tensor

Per = Literal["sample", "positive", "coordinate", "guided"] | float
CLASS_PER = ("sample", "positive", "guided")
BOX_PER = ("sample", "positive", "coordinate")


def alone(value: Tensor) -> Tensor:
    """What a sum over all processes is where there is one."""
    return value


@dataclass
class Samples:
    """Kept samples, with gradient where the network made the value.

    Losses compute in float32 at least: half precision handed in is widened here, once for all.

    Attributes:
        logits: [K, C+1] class logits, column 0 = background (at the RPN ``[0, x]``).
        labels: [K] int64, 0 background, 1..C.
        weights: [K] > 0, from the sampler.
        positive: [P] rows of the positives among the K.
        deltas: [P, 4] predicted box deltas of the labelled class.
        targets: [P, 4] encoded deltas of the matched objects.
        objects: [P, 4] the matched objects, xyxy in pixels of the resized image.
        decode: [P, 4] deltas of the positives -> [P, 4] boxes xyxy in pixels, with gradient.
        scores: [K, C+1] logits -> [K, C+1] scores in [0, 1]: the class loss's activation.
        class_sum: weighted sum of the class losses, detached; 0 until it is known.
        box_term: normalized box term of the same samples, detached; 0 until it is known.
        total: a sum over these samples -> the sum over those of all processes, with gradient.
            What a loss takes over the batch, it takes over the batches of all.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    positive: Tensor
    deltas: Tensor
    targets: Tensor
    objects: Tensor
    decode: Callable[[Tensor], Tensor]
    scores: Callable[[Tensor], Tensor]
    class_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    box_term: Tensor = field(default_factory=lambda: torch.zeros(()))
    total: Callable[[Tensor], Tensor] = alone

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                setattr(self, entry.name, widened(value))


class ClassLoss(Protocol):
    """A classification loss: unreduced values, normalizer, and the scores inference must use.

    A loss that its definition forbids at a site says so in an attribute ``unfit``: site -> reason.
    One with a state of its own has ``state_dict()`` and ``load_state_dict()``.
    """

    def __call__(self, samples: Samples) -> Tensor:
        """[K] unweighted losses."""

    def normalizer(self, samples: Samples) -> float | Tensor:
        """Scalar > 0 that the weighted sum is divided by."""

    def scores(self, logits: Tensor) -> Tensor:
        """[K, C+1] logits -> [K, C+1] scores in [0, 1]."""

    def initial_bias(self, columns: int) -> Tensor | None:
        """[C+1] bias that the site's last layer starts with, for C+1 ``columns``; None = as it is.

        Raises:
            ValueError: the loss holds numbers for other classes than these.
        """


class BoxLoss(Protocol):
    """A box regression loss over the positives; ``unfit`` and a state as for a class loss."""

    def __call__(self, samples: Samples) -> Tensor:
        """[P] losses, one a box."""

    def normalizer(self, samples: Samples) -> float | Tensor:
        """Scalar > 0 that the sum is divided by."""


def widened(values: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, everything else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def check_per(per: Per, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless ``per`` is one of the words allowed or a constant above 0."""
    if per in allowed or (not isinstance(per, str) and per > 0):
        return
    raise ValueError(f"per must be {', '.join(allowed)} or a number above 0, got {per!r}")


def divisor(samples: Samples, per: Per, guided_scale: float = 1.0) -> float | Tensor:
    """What a loss is divided by; counts are those of the samples of all processes.

    Args:
        per: kept "sample"s, "positive"s or their four "coordinate"s, at least 1; a constant; or
            "guided", see ``guided_divisor``.
        guided_scale: for "guided" alone.
    """
    if not isinstance(per, str):
        return float(per)
    if per == "guided":
        return guided_divisor(samples, guided_scale)
    coordinates = 4 if per == "coordinate" else 1
    count = len(samples.labels) if per == "sample" else coordinates * len(samples.positive)
    return total_count(samples, count)


class Divided:
    """A loss that is divided by ``per``, see ``divisor``."""

    per: Per
    guided_scale: float = 1.0

    def normalizer(self, samples: Samples) -> float | Tensor:
        """Scalar > 0 that the weighted sum is divided by."""
        return divisor(samples, self.per, self.guided_scale)


def total_count(samples: Samples, count: int) -> Tensor:
    """0-d, a count of these samples -> that of the samples of all processes, at least 1."""
    return samples.total(samples.logits.new_full((), count)).clamp(min=1)


def guided_divisor(samples: Samples, scale: float) -> Tensor:
    """Guided loss scaling (Sampling-Free, arXiv 1909.04868).

    The divisor that makes the class term ``scale`` times the box term in value; its direction
    stays that of the class loss. Without positives, or with boxes already perfect, there is no
    box term to be guided by: the class loss is then a mean over samples, so that batches of
    background alone still teach. (Released code divides by the positives there: NaN.)

    Returns:
        0-d tensor > 0, without gradient.
    """
    wanted = scale * samples.total(samples.box_term)
    ratio = samples.total(samples.class_sum) / wanted
    mean = total_count(samples, len(samples.labels))
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, mean)
