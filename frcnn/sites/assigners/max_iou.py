"""Labels by IoU thresholds (Faster R-CNN, arXiv 1506.01497, sec. 3.1.2).

Shape letters: N candidates, G objects, J ignore areas, of one image or of a padded batch [I, ...].
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou

from frcnn.sites.assigners.contract import (
    BACKGROUND,
    IGNORE,
    Assigned,
    Unassigned,
    assemble,
    ignore_background_inside,
)

# Pairs of a box and an object whose IoU is computed at once. The first number fits a CPU's cache,
# the second gives a GPU fewer and larger kernels; 50 and 200 MB of memory.
PAIRS, GPU_PAIRS = 1 << 20, 1 << 22


@dataclass(frozen=True)
class MaxIoU:
    """A candidate gets the label of the object that it overlaps most, if it overlaps it enough.

    Differs from torchvision for an object that no candidate overlaps: with ``keep_best``
    torchvision makes every candidate positive, this makes none.

    Attributes:
        high: positive from this IoU on.
        low: background below this IoU; a candidate in between is ignored.
        keep_best: the candidates that overlap an object most are positive below ``high`` too, so
            that an object has a positive wherever a candidate overlaps it (the RPN's rule).
        ignore_ioa: background is ignored if more than this share of it lies in an ignore area
            (crowd, difficult).

    Raises:
        ValueError: a threshold outside [0, 1], or low above high.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 2]])
    >>> candidates = Unassigned([boxes], [boxes[:1]], [torch.tensor([3])], [boxes[:0]])
    >>> MaxIoU(0.7, 0.3)(candidates).labels  # IoU 1, 0.6, 0.2
    tensor([ 3, -1,  0])
    """

    high: float
    low: float
    keep_best: bool = False
    ignore_ioa: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.high <= 1:
            raise ValueError(f"high must be in [0, 1], got {self.high}")
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low must be in [0, high={self.high}], got {self.low}")
        if not 0 <= self.ignore_ioa <= 1:
            raise ValueError(f"ignore_ioa must be in [0, 1], got {self.ignore_ioa}")

    def __call__(self, candidates: Unassigned) -> Assigned:
        """Label all images of a batch at once."""
        lists = (
            candidates.boxes,
            candidates.objects,
            candidates.object_labels,
            candidates.ignore,
        )
        boxes, objects, labels, ignore = (pad_sequence(list(part), True) for part in lists)
        padded = self.label(boxes, objects, labels, ignore)
        found = [_unpad(table, candidates.sizes) for table in padded]
        return assemble(candidates, *found)

    def label(
        self, boxes: Tensor, objects: Tensor, labels: Tensor, ignore: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Label [..., N, 4] boxes by [..., G, 4] objects with [..., G] labels.

        Objects of label 0 and ignore areas [..., J, 4] without area are padding. The table of IoUs
        is computed in chunks of boxes, so that memory does not grow with N * G.

        Returns:
            [..., N] labels, IoU with the object that overlaps most, and its row (-1 = no objects).
        """
        if not labels.shape[-1]:  # max() needs at least one object, so pad one
            objects, labels = F.pad(objects, (0, 0, 0, 1)), F.pad(labels, (0, 1))
        # The results come first in memory: allocated between the chunks' tables, they would keep
        # the allocator from reusing that memory.
        found = boxes.new_empty(boxes.shape[:-1], dtype=torch.int64)
        ious, gt = boxes.new_empty(boxes.shape[:-1]), torch.empty_like(found)
        chunks = boxes.split(_chunk_size(boxes, labels, ignore), dim=-2)
        tables = [object_ious(objects, labels, boxes)] if len(chunks) == 1 else None
        best = self._best_of_objects(
            tables or (object_ious(objects, labels, chunk) for chunk in chunks), labels, boxes
        )
        first = 0
        for chunk in chunks:
            table = tables[0] if tables else object_ious(objects, labels, chunk)
            part = slice(first, first := first + chunk.shape[-2])
            found[..., part], ious[..., part], gt[..., part] = self._label_chunk(
                table, best, labels, chunk, ignore
            )
        return found, ious, gt

    def _best_of_objects(self, tables: Iterable[Tensor], labels: Tensor, boxes: Tensor) -> Tensor:
        """[..., G] highest IoU of each object with any box; 0 where it is not needed."""
        best = torch.zeros_like(labels, dtype=boxes.dtype)
        if self.keep_best and boxes.shape[-2]:
            for table in tables:
                best = best.maximum(table.amax(-1))
        return best

    def _label_chunk(
        self, table: Tensor, best: Tensor, labels: Tensor, boxes: Tensor, ignore: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, IoUs and rows of [..., G, N] IoUs, given the [..., G] best of each object."""
        ious, gt = table.max(-2)
        positive = ious >= self.high
        if self.keep_best:
            # An object that overlaps no candidate has no best one.
            best = best.clamp(min=torch.finfo(best.dtype).tiny)
            positive |= (table == best[..., None]).any(-2)
        found = torch.full_like(gt, IGNORE).masked_fill(ious < self.low, BACKGROUND)
        found = torch.where(positive, labels.gather(-1, gt), found)
        found = ignore_background_inside(found, boxes, ignore, self.ignore_ioa)
        return found, ious.clamp(min=0), gt.masked_fill(ious < 0, -1)


def object_ious(objects: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    """[..., G, N] IoU of each object with each box, -1 where the object is padding."""
    return box_iou(objects, boxes).masked_fill(labels[..., None] == 0, -1)


def _chunk_size(boxes: Tensor, labels: Tensor, ignore: Tensor) -> int:
    """Boxes whose IoUs with all objects and ignore areas are computed at once."""
    pairs = PAIRS if boxes.device.type == "cpu" else GPU_PAIRS
    return max(1, pairs // max(1, labels.numel() + ignore[..., 0].numel()))


def _unpad(table: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """[I, M] -> the first ``size`` entries of each row."""
    return [row[:size] for row, size in zip(table, sizes, strict=True)]
