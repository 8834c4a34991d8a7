"""What a sampler is given, at both sites.

Shape letters: N candidates of the batch (all images stacked), G ground-truth boxes of the batch,
I images, K rows asked of ``predict``, C foreground classes (1 at the RPN: "object").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass
class Prediction:
    """What the network says now about K candidates; detached, float32.

    Attributes:
        logits: [K, C+1] class logits, column 0 = background (at the RPN ``[0, x]``).
        boxes: [K, 4] xyxy pixels; the decoded box of the labelled class for a positive, of the
            best-scoring foreground class otherwise.
        loss: [K] class loss + box loss (the latter 0 for negatives), unweighted.
        class_loss: [K] class loss alone; ``loss`` where it is not given.
        activation: logits -> scores in [0, 1], as inference reads them under this class loss;
            softmax where it is not given.
    """

    logits: Tensor
    boxes: Tensor
    loss: Tensor
    class_loss: Tensor | None = None
    activation: Callable[[Tensor], Tensor] = partial(torch.softmax, dim=1)

    def __post_init__(self) -> None:
        if self.class_loss is None:
            self.class_loss = self.loss

    @property
    def scores(self) -> Tensor:
        """[K, C+1] float32 scores in [0, 1], column 0 = background."""
        return self.activation(self.logits.float())


def alone(rows: Tensor) -> tuple[Tensor, slice]:
    """What ``Candidates.gather`` is where there is one process."""
    return rows, slice(0, len(rows))


@dataclass
class Candidates:
    """The candidates of one site for a whole batch, images stacked.

    Attributes:
        boxes: [N, 4] xyxy, pixels of the resized image.
        labels: [N] int64; -1 ignore, 0 background, 1..C object.
        ious: [N] IoU with the matched box, 0 in an image without objects.
        gt: [N] row of ``gt_boxes`` that overlaps most (numbered over the batch), of negatives too;
            -1 only in an image without objects.
        gt_boxes: [G, 4] xyxy, pixels of the resized image.
        image: [N] index of the image in the batch, ascending.
        predict: rows [K] -> ``Prediction``, without gradient. Free at the RPN; at the RCNN head it
            is an extra pass of the head, so only samplers that need it call it. An ignored row has
            the loss that it would have as background.
        generators: one random generator an image (on the candidates' device), or None for
            torch's global one.
        sizes: candidates of each image, known to the host; read off ``image`` if not given (which
            makes a GPU's host wait).
        gather: [K, ...] rows -> the rows of all processes that share the batch, stacked, and
            which of them are this one's; for what a sampler takes over the batch.
    """

    boxes: Tensor
    labels: Tensor
    ious: Tensor
    gt: Tensor
    gt_boxes: Tensor
    image: Tensor
    predict: Callable[[Tensor], Prediction]
    generators: Sequence[torch.Generator] | None = None
    sizes: Sequence[int] = ()
    gather: Callable[[Tensor], tuple[Tensor, slice]] = alone

    def __post_init__(self) -> None:
        self.finite = torch.ones((), dtype=torch.bool, device=self.labels.device)
        if not self.sizes:
            known = 1 if self.generators is None else len(self.generators)
            self.sizes = self.image.bincount(minlength=known).tolist()

    @property
    def positive(self) -> Tensor:
        """[N] bool: labelled as an object."""
        return self.labels > 0

    @property
    def negative(self) -> Tensor:
        """[N] bool: labelled as background."""
        return self.labels == 0

    @property
    def num_images(self) -> int:
        """I, images without any candidate at the end of the batch left out if unknown."""
        return len(self.sizes)

    def losses(self, part: str = "loss") -> Tensor:
        """[N] float32 losses now, "loss" or "class_loss" of the prediction.

        Raises:
            FloatingPointError: one is not finite; nothing can be ranked by it. On a GPU, where a
                look at the numbers makes the host wait, the site raises it after the draw.
        """
        rows = torch.arange(len(self.labels), device=self.labels.device)
        loss = getattr(self.predict(rows), part).float()
        self.finite = self.finite & (loss.isfinite() | (self.labels < 0)).all()
        if loss.device.type == "cpu":
            self.check_finite()
        return loss

    def check_finite(self) -> None:
        """Raise FloatingPointError if a loss that was looked at is not finite."""
        if not self.finite:
            raise FloatingPointError("the loss of a candidate is not finite")

    def by_image(self, values: Tensor, fill: float = 0) -> Tensor:
        """[N] values of the candidates -> [I, M], a row an image, filled up to the longest."""
        return pad_sequence(values.split(self.sizes), batch_first=True, padding_value=fill)

    def stacked(self, table: Tensor) -> Tensor:
        """[I, M], as ``by_image`` gives, -> [N]."""
        return torch.cat([row[:size] for row, size in zip(table, self.sizes, strict=True)])

    def generator(self, image: int) -> torch.Generator | None:
        """The random generator of an image."""
        return None if self.generators is None else self.generators[image]


class Sampler(Protocol):
    """Candidates -> [N] float weights: 0 = not sampled, hard methods 1, soft ones any w > 0."""

    def __call__(self, candidates: Candidates) -> Tensor: ...
