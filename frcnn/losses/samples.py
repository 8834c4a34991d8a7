"""What a loss is given: everything known about the samples that a sampler kept.

Shape letters: K kept samples of the batch, P positives among them, C object classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

import torch
from torch import Tensor

from samplers.arguments import check_above_zero
from samplers.candidates import single_process

Per = Literal["sample", "positive", "coordinate", "guided", "image", "class_term"] | float
CLASS_PER = ("sample", "positive", "image", "guided")
BOX_PER = ("sample", "positive", "coordinate", "image", "class_term")
# One divisor, or one per image [I].
Normalizer = float | Tensor


def single_total(value: Tensor) -> Tensor:
    """``Samples.total`` in a single process."""
    return value


def no_values() -> Tensor:
    """Empty until the site has computed the losses."""
    return torch.zeros(0)


def no_normalizer() -> Normalizer:
    """1 until the site knows the normalizer."""
    return 1.0


@dataclass
class Samples:
    """Kept samples, with gradient where the network made the value.

    "The batch" is that of all processes: a statistic over it uses ``total`` or ``gather``. In
    training it is over the kept samples; in a preview over the candidates that the sampler asks
    for and that are not ignored. Every process calls ``total`` and ``gather`` equally often, also
    without any sample.

    Losses compute in float32 at least: half precision is widened here, once for all.

    Attributes:
        logits: [K, C+1] class logits, column 0 = background (at the RPN ``[0, x]``).
        labels: [K] int64, 0 background, 1..C.
        weights: [K] > 0, from the sampler; 1 in a preview.
        positive: [P] rows of the positives among the K.
        deltas: [P, 4] predicted box deltas of the labelled class.
        targets: [P, 4] encoded deltas of the assigned objects.
        objects: [P, 4] the assigned objects, xyxy in pixels of the resized image.
        decode: [P, 4] deltas of the positives -> [P, 4] boxes xyxy in pixels, with gradient.
        scores: [K, C+1] logits -> [K, C+1] scores in [0, 1]: the class loss's activation.
        boxes: [K, 4] the candidates' own boxes (anchors, proposals), xyxy in pixels.
        ious: [K] IoU of the candidate's own box with its object. (A site always fills in ``boxes``,
            ``ious`` and ``image``; they are empty by default for losses that do not read them.)
        image: [K] int64, the image of each sample within this process's batch.
        num_images: images of this process's batch; 0 if it has only a placeholder, which gives no
            samples (``frcnn.data.empty_batch``).
        soft_targets: [K] in [0, 1] from an assigner that has them, else None.
        assigner_weights: [K] >= 0 from an assigner that has them, else None.
        training: True in the one pass of a step in which a state may move; False in previews and
            in validation.
        generator: for a loss that draws: the same stream in every process and in the preview and
            the training pass of a step; None = torch's global generator. The rows of processes
            differ, so draw one number per batch, never one per row.
        total: a sum over these samples -> the sum over those of all processes, with gradient.
        step_total: a number -> its sum over all processes and, with ``trainer.accumulate``, over
            all batches of the optimizer step. For normalizers: a count, or a sum of an assigner's
            weights, which a pass without gradient knows; never a loss.
        gather: [M, ...] rows -> the rows of all processes, stacked, and the slice of the local
            ones; without gradient.
        class_values, box_values: [K] and [P] weighted losses, detached; empty in a preview. While
            a weigher runs, they are the losses before its own weights: class losses times the
            sampler's weights, and box losses.
        class_normalizer, box_normalizer: of the two losses; see ``class_term`` and ``box_term``.
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
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    ious: Tensor = field(default_factory=lambda: torch.zeros(0))
    image: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    num_images: int = 1
    soft_targets: Tensor | None = None
    assigner_weights: Tensor | None = None
    training: bool = False
    generator: torch.Generator | None = None
    total: Callable[[Tensor], Tensor] = single_total
    step_total: Callable[[Tensor], Tensor] = single_total
    gather: Callable[[Tensor], tuple[Tensor, slice]] = single_process
    class_values: Tensor = field(default_factory=no_values)
    box_values: Tensor = field(default_factory=no_values)
    class_normalizer: Callable[[], Normalizer] = no_normalizer
    box_normalizer: Callable[[], Normalizer] = no_normalizer

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                setattr(self, entry.name, widened(value))

    @property
    def class_sum(self) -> Tensor:
        """Sum of the weighted class losses of this process, detached."""
        return self.class_values.sum()

    @property
    def box_sum(self) -> Tensor:
        """Sum of the weighted box losses of this process, detached."""
        return self.box_values.sum()

    def class_term(self) -> Tensor:
        """This process's share of the class term, detached; for the box loss's normalizer."""
        return normalized(self.class_values, self.image, self.class_normalizer())

    def box_term(self) -> Tensor:
        """This process's share of the box term, detached; for the class loss's normalizer."""
        return normalized(self.box_values, self.image[self.positive], self.box_normalizer())


class ClassLoss(Protocol):
    """A classification loss: unreduced values, normalizer, and the scores inference must use.

    A loss that its definition forbids at a kind of site says so in an attribute ``unfit``: kind ->
    reason. One with a state or with parameters is an ``nn.Module``; a state moves only where
    ``samples.training`` is True, and parameters may have ``own_optimizer()``, as a weigher's. An
    argument called ``class_counts`` or ``class_frequencies`` gets the training set's numbers where
    its value in the YAML file is ``data``: objects of each class, shares of images that show it.

    One that must know its classes has ``prepare(columns)``, which is called once, with C+1, when
    the detector is built. There it makes its counters, and raises ValueError if it holds numbers
    for other classes.
    """

    def __call__(self, samples: Samples) -> Tensor:
        """[K] unweighted losses."""

    def normalizer(self, samples: Samples) -> Normalizer:
        """What the weighted sum is divided by, > 0: one number, or [I] one for each image."""

    def scores(self, logits: Tensor) -> Tensor:
        """[K, C+1] logits -> [K, C+1] scores in [0, 1]."""

    def initial_bias(self, columns: int) -> Tensor | None:
        """[C+1] bias that the site's last layer starts with, for C+1 ``columns``.

        None = keep the layer's own initialization.
        """


class BoxLoss(Protocol):
    """A box regression loss over the positives; ``unfit`` and states as for a class loss."""

    def __call__(self, samples: Samples) -> Tensor:
        """[P] losses, one per box."""

    def normalizer(self, samples: Samples) -> Normalizer:
        """What the sum is divided by, > 0: one number, or [I] one for each image."""


def normalized(values: Tensor, image: Tensor, normalizer: Normalizer) -> Tensor:
    """0-d term of [K] losses, the [K] images that they belong to, and their normalizer."""
    if isinstance(normalizer, Tensor) and normalizer.dim():
        return (values / normalizer[image]).sum()
    return values.sum() / normalizer


def widened(values: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, everything else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def check_per(per: Per, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless ``per`` is one of the words allowed or a constant above 0."""
    if per in allowed or (not isinstance(per, str | bool) and per > 0):
        return
    raise ValueError(f"per must be {', '.join(allowed)} or a number above 0, got {per!r}")


def divisor(samples: Samples, per: Per, guided_scale: float = 1.0) -> Normalizer:
    """What a loss is divided by; counts are those of the samples of all processes in the step.

    Args:
        per: what the sum is divided by: kept samples ("sample"), positives ("positive"), their
            coordinates ("coordinate", four each), per image by its positives ("image", see
            ``image_divisor``), or a constant. A count is at least 1. "guided" and "class_term"
            ask for the other term: see ``guided_divisor`` and ``class_term_divisor``.
        guided_scale: for "guided" alone.
    """
    if not isinstance(per, str):
        return float(per)
    if per == "guided":
        return guided_divisor(samples, guided_scale)
    if per == "class_term":
        return class_term_divisor(samples)
    if per == "image":
        return image_divisor(samples)
    coordinates = 4 if per == "coordinate" else 1
    count = len(samples.labels) if per == "sample" else coordinates * len(samples.positive)
    return step_count(samples, count)


class Divided:
    """A loss that is divided by ``per``; see ``divisor``.

    Args:
        allowed: the words that ``per`` may be, ``CLASS_PER`` or ``BOX_PER``.
        guided_scale: class term over box term with ``per="guided"``, > 0.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, per: Per, allowed: tuple[str, ...], guided_scale: float = 1.0) -> None:
        super().__init__()  # that of nn.Module, for a loss with a state
        check_per(per, allowed)
        check_above_zero("guided_scale", guided_scale)
        self.per, self.guided_scale = per, guided_scale

    def normalizer(self, samples: Samples) -> Normalizer:
        """What the weighted sum is divided by; see ``divisor``."""
        return divisor(samples, self.per, self.guided_scale)


def total_count(samples: Samples, count: int) -> Tensor:
    """0-d, a count of these samples -> that of the samples of all processes, at least 1."""
    return samples.total(samples.logits.new_full((), count)).clamp(min=1)


def step_count(samples: Samples, count: int) -> Tensor:
    """0-d, a count of these samples -> that of all samples of the optimizer step, at least 1."""
    return samples.step_total(samples.logits.new_full((), count)).clamp(min=1)


def image_divisor(samples: Samples) -> Tensor:
    """[I] positives of the image times the number of images.

    Each image's loss is divided by its own positives, then averaged (torchvision's RetinaNet).
    """
    ones = samples.logits.new_ones(len(samples.positive))
    positives = samples.logits.new_zeros(samples.num_images)
    positives = positives.index_add(0, samples.image[samples.positive], ones)
    return positives.clamp(min=1) * step_count(samples, samples.num_images)


def guided_divisor(samples: Samples, scale: float) -> Tensor:
    """Guided loss scaling (Sampling-Free, arXiv 1909.04868).

    The divisor that makes the class term ``scale`` times the box term in value; its direction
    stays that of the class loss. Without positives, or with boxes already perfect, there is no
    box term to be guided by: the class loss is then a mean over samples, so that batches of
    background alone still teach. (Released code divides by the positives there: NaN.)

    Returns:
        0-d tensor > 0, without gradient.
    """
    wanted = scale * samples.total(samples.box_term())
    ratio = samples.total(samples.class_sum) / wanted
    mean = step_count(samples, len(samples.labels))
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, mean)


def class_term_divisor(samples: Samples) -> Tensor:
    """The divisor that makes the box term as large as the class term, in value (RS loss, sec. 4).

    Where one of both is 0, the positives.

    Returns:
        0-d tensor > 0, without gradient.
    """
    ratio = samples.total(samples.box_sum) / samples.total(samples.class_term())
    positives = step_count(samples, len(samples.positive))
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, positives)
