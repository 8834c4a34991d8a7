"""Which of the RPN's boxes become proposals (Faster R-CNN, arXiv 1506.01497, sec. 3.3).

The picks and their order are those of torchvision's ``RegionProposalNetwork.filter_proposals``,
which filters image by image. On a CPU the suppressions of all images and levels run in threads. On
a GPU all images are filtered at once, and the host waits for one thing, the numbers of proposals.
There a pick may differ where an IoU lies within rounding of the threshold: torchvision moves the
levels apart before it compares boxes, which rounds their corners.

Shape letters: I images, N anchors of an image, K candidates of an image: the best of each level.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from samplers.host import Numbers, reads_are_free, rows_where
from samplers.suppression import LEFT_OUT, cluster_heads

# Up to so many boxes torchvision's ``batched_nms`` adds an offset per level to them, so that one
# call serves all levels. Its rounding depends on the offset, so the same boxes must go through it.
MOVED_APART = 1000


@dataclass
class Ranked:
    """Candidates of all images.

    Attributes:
        boxes: [I, K, 4] xyxy pixels, cut to the image; level after level, in each by falling logit.
        scores: [I, K] in [0, 1].
        level: [K] int64.
        valid: [I, K] bool: neither too small nor of too low a score.
    """

    boxes: Tensor
    scores: Tensor
    level: Tensor
    valid: Tensor


@dataclass(frozen=True)
class ProposalFilter:
    """The best boxes of each level, without those that overlap a better one of their level.

    Attributes:
        pre_nms_top_n: candidates of each level, by score.
        post_nms_top_n: proposals of each image, by score. On a GPU ties go to the lowest level and
            then to the highest logit; on a CPU they are in torchvision's order, which it does not
            define.
        nms_thresh: IoU above which the box of lower score is removed.
        score_thresh: lowest score of a proposal.
        min_size: lowest width and height in pixels.
    """

    pre_nms_top_n: int
    post_nms_top_n: int
    nms_thresh: float
    score_thresh: float
    min_size: float

    @torch.no_grad()
    def ask(
        self,
        boxes: Tensor,
        logits: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        level_sizes: Sequence[int],
    ) -> Callable[[], list[Tensor]]:
        """A function that returns the proposals [<= post_nms_top_n, 4] of each image, best first.

        On a GPU the host waits when it is called, not now; see ``samplers.host.Numbers``.

        Args:
            boxes: [I, N, 4] xyxy pixels, level after level.
            logits: [I, N].
            image_sizes: height and width of each image in pixels.
            level_sizes: anchors of each level, N in all.
        """
        ranked = self._ranked(boxes, logits, image_sizes, level_sizes)
        if reads_are_free(boxes.device):
            proposals = self._by_image(ranked)
            return lambda: proposals
        return _AllAtOnce(ranked, self.nms_thresh, self.post_nms_top_n).proposals

    def _ranked(
        self,
        boxes: Tensor,
        logits: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        level_sizes: Sequence[int],
    ) -> Ranked:
        """The best of each level, of all images."""
        columns, sizes, first = [], [], 0
        for part in logits.split(list(level_sizes), 1):
            sizes.append(min(self.pre_nms_top_n, part.shape[1]))
            columns.append(part.topk(sizes[-1], dim=1).indices + first)
            first += part.shape[1]
        column = torch.cat(columns, 1)
        scores = logits.gather(1, column).sigmoid()
        boxes = boxes.gather(1, column[..., None].expand(-1, -1, 4))
        limits = torch.tensor([(width, height) * 2 for height, width in image_sizes])
        limits = limits.to(boxes, non_blocking=True)[:, None]
        boxes = boxes.clamp(min=0).minimum(limits)
        width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
        valid = (width >= self.min_size) & (height >= self.min_size)
        levels = [torch.full((size,), number) for number, size in enumerate(sizes)]
        level = torch.cat(levels).to(boxes.device, non_blocking=True)
        return Ranked(boxes, scores, level, valid & (scores >= self.score_thresh))

    def _by_image(self, ranked: Ranked) -> list[Tensor]:
        """The proposals on a CPU."""
        rows = [torch.where(valid)[0] for valid in ranked.valid]
        boxes = [own[row] for own, row in zip(ranked.boxes, rows, strict=True)]
        scores = [own[row] for own, row in zip(ranked.scores, rows, strict=True)]
        levels = [ranked.level[row] for row in rows]
        kept = suppress(boxes, scores, levels, self.nms_thresh)
        return [own[row[: self.post_nms_top_n]] for own, row in zip(boxes, kept, strict=True)]


def suppress(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], levels: Sequence[Tensor], threshold: float
) -> list[Tensor]:
    """``batched_nms`` of each image on a CPU; the lists of all images run in torch's threads.

    Args:
        boxes, scores, levels: [K_i, 4], [K_i] and [K_i] of each image; levels ascend.

    Returns:
        Rows that are kept, for each image, by falling score; ties are in ``batched_nms``'s order.
    """
    parts = [_lists(*image) for image in zip(boxes, scores, levels, strict=True)]
    done = iter(_run([partial(part.kept, threshold) for image in parts for part in image]))
    kept = [[next(done) for _ in image] for image in parts]
    return [_joined(rows, own) for rows, own in zip(kept, scores, strict=True)]


class _List(NamedTuple):
    """Boxes of one image that are suppressed together; ``first`` is the row of the first of them.

    They are of one level if ``levels`` is None.
    """

    first: int
    boxes: Tensor
    scores: Tensor
    levels: Tensor | None = None

    def kept(self, threshold: float) -> Tensor:
        """Rows of the image that are kept."""
        if self.levels is not None:
            return batched_nms(self.boxes, self.scores, self.levels, threshold)
        return self.first + nms(self.boxes, self.scores, threshold)


def _lists(boxes: Tensor, scores: Tensor, levels: Tensor) -> list[_List]:
    """The lists of one image, as ``batched_nms`` makes them."""
    if len(boxes) <= MOVED_APART:
        return [_List(0, boxes, scores, levels)]
    sizes = [size for size in levels.bincount().tolist() if size]
    firsts = [0, *accumulate(sizes)]
    return list(map(_List, firsts, boxes.split(sizes), scores.split(sizes)))


def _joined(kept: Sequence[Tensor], scores: Tensor) -> Tensor:
    """Kept rows of each list of an image -> of the image, by falling score."""
    if len(scores) <= MOVED_APART:
        return kept[0]
    rows = torch.cat(list(kept)).sort().values
    # Not stable, because torchvision's is not: equal rows give the same order.
    return rows[scores[rows].sort(descending=True).indices]


def _run(jobs: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """The results of all jobs. torchvision's NMS uses one thread, and lets other threads run."""
    threads = min(torch.get_num_threads(), len(jobs))
    if threads < 2:
        return [job() for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: job(), jobs))


class _AllAtOnce:
    """The proposals on a GPU."""

    def __init__(self, ranked: Ranked, threshold: float, most: int) -> None:
        # By probability: logits that differ may have the same.
        order = ranked.scores.argsort(dim=1, descending=True, stable=True)
        self.boxes = ranked.boxes.gather(1, order[..., None].expand(-1, -1, 4))
        level = ranked.level.where(ranked.valid, LEFT_OUT)
        self.level = level.gather(1, order)
        self.threshold, self.most = threshold, most
        self.attempt(0)

    def attempt(self, number: int) -> None:
        """Choose the proposals, and ask for their numbers and whether they are right."""
        head, exact = cluster_heads(self.boxes, self.level, self.threshold, number)
        kept = head == torch.arange(head.shape[1], device=head.device)
        self.chosen = kept & (kept.cumsum(1) <= self.most)
        self.numbers = Numbers(exact, self.chosen.sum(1))

    @torch.no_grad()
    def proposals(self) -> list[Tensor]:
        """Proposals of each image, best first."""
        for number in count(1):
            exact, sizes = self.numbers.read()
            if exact:
                break
            self.attempt(number)
        rows = rows_where(self.chosen.flatten(), sum(sizes))
        return list(self.boxes.flatten(0, 1)[rows].split(sizes))
