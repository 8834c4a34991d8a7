"""What a sampler is given, at every site.

Shape letters: N candidates of the batch (all images stacked), G ground-truth boxes of the batch,
I images, M candidates of the largest image, K rows passed to ``predict``, C foreground classes
(1 at the RPN: "object").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from samplers.host import reads_are_free


@dataclass
class Prediction:
    """What the network predicts now for K candidates; detached, float32.

    Attributes:
        logits: [K, C+1] class logits, column 0 = background (at the RPN ``[0, x]``).
        decoded: ``boxes``, or a function that returns them.
        loss: [K] class loss + box loss (0 for negatives), unweighted.
        class_loss: [K] class loss alone; equals ``loss`` if not given.
        activation: logits -> scores in [0, 1], as inference computes them under this class loss;
            softmax if not given.
    """

    logits: Tensor
    decoded: Tensor | Callable[[], Tensor]
    loss: Tensor
    class_loss: Tensor | None = None
    activation: Callable[[Tensor], Tensor] = partial(torch.softmax, dim=1)

    def __post_init__(self) -> None:
        if self.class_loss is None:
            self.class_loss = self.loss

    @cached_property
    def boxes(self) -> Tensor:
        """[K, 4] xyxy pixels: the box of the labelled class of a positive, otherwise that of the
        foreground class of highest score. Decoded when first asked for: OHEM without NMS never
        does."""
        return self.decoded() if callable(self.decoded) else self.decoded

    @property
    def scores(self) -> Tensor:
        """[K, C+1] float32 scores in [0, 1], column 0 = background."""
        return self.activation(self.logits.float())


def single_process(rows: Tensor) -> tuple[Tensor, slice]:
    """``Candidates.gather`` of a run with one process: its rows are all rows."""
    return rows, slice(0, len(rows))


@dataclass
class Candidates:
    """The candidates of one site for a whole batch, images stacked.

    Every process must call ``predict`` and ``gather`` equally often per draw, also when it has no
    row, because both may wait for the other processes. So a sampler must call them the same number
    of times whatever its data.

    Attributes:
        boxes: [N, 4] xyxy, pixels of the resized image.
        labels: [N] int64; -1 ignore, 0 background, 1..C object.
        ious: [N] IoU with the object in ``gt``, 0 in an image without objects.
        gt: [N] row of ``gt_boxes`` (numbered over the batch): the object that the candidate is
            positive for, of all others the one of highest IoU; -1 only in an image without objects.
        gt_boxes: [G, 4] xyxy, pixels of the resized image.
        image: [N] index of the image in the batch, ascending.
        predict: rows [K] -> ``Prediction``, without gradient. At the RPN it costs nothing; at the
            RCNN head it is an extra pass of the head, so call it only if needed. An ignored row
            has loss 0 and changes nothing. A class loss may sum over the rows of all processes.
        generators: one random generator per image (on the candidates' device), or None for
            torch's global one.
        sizes: number of candidates per image, known on the host; counted from ``image`` if not
            given (on a GPU, the host then waits).
        gather: [K, ...] rows -> the rows of all processes that share the batch, stacked, and the
            slice of this process; for statistics over the batch.
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
    gather: Callable[[Tensor], tuple[Tensor, slice]] = single_process

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
        """I; without ``sizes`` and ``generators``, empty images at the end are not counted."""
        return len(self.sizes)

    def losses(self, part: Literal["loss", "class_loss"] = "loss") -> Tensor:
        """[N] float32 losses now, "loss" or "class_loss" of the prediction.

        Raises:
            FloatingPointError: a loss is not finite, so that nothing can be ranked by it; see
                ``require``.
        """
        rows = torch.arange(len(self.labels), device=self.labels.device)
        loss = getattr(self.predict(rows), part).float()
        self.require((loss.isfinite() | (self.labels < 0)).all())
        return loss

    def require(self, finite: Tensor) -> None:
        """Raise FloatingPointError unless this holds, a 0-d bool: what is predicted is finite.

        On a GPU the site raises it after the draw, because reading a number makes the host wait.
        """
        self.finite = self.finite & finite
        if reads_are_free(finite.device):
            self.check_finite()

    def check_finite(self) -> None:
        """Raise FloatingPointError if something that ``require`` was given did not hold."""
        if not self.finite:
            raise FloatingPointError("a predicted loss, score or box of a candidate is not finite")

    def pad_by_image(self, values: Tensor, fill: float = 0) -> Tensor:
        """[N] values -> [I, M]: one row per image, padded with ``fill`` to the largest image."""
        return pad_sequence(
            list(values.split(list(self.sizes))), batch_first=True, padding_value=fill
        )

    def unpad(self, table: Tensor) -> Tensor:
        """[I, M] -> [N], the inverse of ``pad_by_image``."""
        return torch.cat([row[:size] for row, size in zip(table, self.sizes, strict=True)])

    def generator(self, image: int) -> torch.Generator | None:
        """The random generator of an image."""
        return None if self.generators is None else self.generators[image]


class Sampler(Protocol):
    """Candidates -> [N] float weights: 0 = not sampled, hard methods 1, soft ones any w > 0."""

    def __call__(self, candidates: Candidates) -> Tensor: ...
