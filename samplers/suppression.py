"""Greedy non-maximum suppression of many lists of boxes at once, for a GPU: the host reads nothing.

Shape letters: G lists, M boxes of the longest list, B boxes of a block, A boxes before the block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from samplers.iou import iou

LEFT_OUT = -1  # the group of a box that neither removes nor is kept
# Columns that are settled at a time. They cost B^2 per round, and a block needs at most B rounds.
BLOCK = 512
# Rounds of the first attempt, and by how much each further attempt multiplies them.
ROUNDS, MORE_ROUNDS = 16, 8
# Pairs of boxes compared at a time: few and large kernels, about 250 MB of memory.
PAIRS = 1 << 24


def cluster_heads(
    boxes: Tensor, group: Tensor, threshold: float, attempt: int = 0
) -> tuple[Tensor, Tensor]:
    """The head of each box's cluster: the box itself if greedy NMS keeps it, else what removes it.

    Greedy NMS goes through a list from its first box to its last; a box is removed by the first
    kept box that overlaps it. The columns are settled block by block. Earlier blocks are right, so
    what they remove is known at once. Within a block the first guess is that all others are kept.
    Each round removes what overlaps an earlier box that is kept by the guess, which gives the next
    guess. After n rounds at least the first n boxes of the block are right, and often all of them:
    a guess that does not change is right.

    Args:
        boxes: [G, M, 4] xyxy pixels, best first.
        group: [G, M] int64; only boxes of one group remove one another. A box of ``LEFT_OUT``
            neither removes nor is kept.
        threshold: IoU above which a kept box removes another.
        attempt: each one has more rounds; the third is always exact.

    Returns:
        [G, M] int64, the column of the head, M for a box that is left out; and 0-d bool, whether
        the rounds were enough. If not, ask again with ``attempt + 1``.
    """
    size = group.shape[1]
    column = torch.arange(size, device=boxes.device)
    table = Boxes(boxes.permute(2, 0, 1).contiguous(), group)
    head = torch.full_like(group, size)
    exact = torch.ones((), dtype=torch.bool, device=boxes.device)
    for first in range(0, size, BLOCK):
        columns = slice(first, first + BLOCK)
        block = table.columns(columns)
        is_head = head[:, :first] == column[:first]
        earlier = _first_overlap(table.columns(slice(first)), is_head, block, threshold, size)
        left = (block.group != LEFT_OUT) & (earlier == size)
        pairs = block.overlaps(block, threshold).triu(1)
        kept, settled = _settle(left, pairs, attempt)
        exact = exact & settled
        inside = _first_column(pairs & kept[..., None], column[columns], size)
        own_head = torch.where(kept, column[columns], earlier.minimum(inside))
        head[:, columns] = own_head.masked_fill(block.group == LEFT_OUT, size)
    return head, exact


class Boxes(NamedTuple):
    """[4, G, M] xyxy corners and [G, M] groups."""

    corners: Tensor
    group: Tensor

    def columns(self, part: slice) -> "Boxes":
        """Some columns of all lists."""
        return Boxes(self.corners[:, :, part], self.group[:, part])

    def lists(self, part: slice) -> "Boxes":
        """All columns of some lists."""
        return Boxes(self.corners[:, part], self.group[part])

    def overlaps(self, others: "Boxes", threshold: float) -> Tensor:
        """[G, M, M'] whether two boxes of a group have an IoU above the threshold."""
        above = iou(self.corners[..., None], others.corners[:, :, None]) > threshold
        return above & (self.group[..., None] == others.group[:, None])


def _settle(left: Tensor, pairs: Tensor, attempt: int) -> tuple[Tensor, Tensor]:
    """[G, B] what greedy NMS keeps of the boxes ``left``, and whether the rounds were enough.

    Args:
        pairs: [G, B, B] bool, the pairs of an earlier box and a later one that overlap.
    """
    kept = before = left
    for _ in range(min(ROUNDS * MORE_ROUNDS**attempt, left.shape[1])):
        before, kept = kept, left & ~(pairs & kept[..., None]).any(1)
    return kept, (before == kept).all()


def _first_overlap(
    earlier: Boxes, is_head: Tensor, block: Boxes, threshold: float, none: int
) -> Tensor:
    """[G, B] the first of the A earlier columns that is a head and overlaps the box, or ``none``.

    Args:
        is_head: [G, A] bool.
    """
    lists, before = is_head.shape
    if not before:
        return torch.full_like(block.group, none)
    column = torch.arange(before, device=is_head.device)
    step = max(1, PAIRS // (before * block.group.shape[1]))
    found = []
    for part in (slice(first, first + step) for first in range(0, lists, step)):
        pairs = earlier.lists(part).overlaps(block.lists(part), threshold)
        found.append(_first_column(pairs & is_head[part, :, None], column, none))
    return torch.cat(found)


def _first_column(pairs: Tensor, column: Tensor, none: int) -> Tensor:
    """[G, A, B] pairs, [A] columns -> [G, B] the first column that is paired, or ``none``."""
    return torch.where(pairs, column[:, None], none).amin(1)
