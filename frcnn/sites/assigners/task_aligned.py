"""Task-aligned learning (TOOD, Feng et al., ICCV 2021, arXiv 2108.07755).

Shape letters: N candidates and G objects of one image, D predicted boxes per candidate, k
candidates of each object.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from frcnn.sites.assigners.contract import Assigned, Unassigned
from frcnn.sites.assigners.pairs import (
    assemble_owned,
    centers,
    inside,
    no_owners,
    object_chunks,
    owners,
    pair_ious,
    smallest,
)
from samplers.arguments import check_at_least_one, check_not_negative, check_share


@dataclass(frozen=True)
class TaskAligned:
    """A candidate is positive if its score and its box are both good now: ``t = s^alpha u^beta``.

    s is the predicted score of the object's class, u the IoU of the predicted box with the object.
    The k candidates of highest t of an object are positive, if t > 0 and their centre lies inside
    it. A candidate of several objects goes to the one of highest u. All others are background.

    ``soft_targets`` is ``t / max(t) * max(u)`` over the positives of the same object: the best one
    has the best IoU. ``weights``, for the box loss, is the same; 1 for background.

    Differs from released code: no 1e-7 is added to ``max(t)``, which would shrink the targets of a
    network that has learned little (0.01 * 0.1^6 is 1e-8). The paper's first epochs with ATSS are
    not part of the assigner.

    Attributes:
        k: candidates per object, at least 1.
        alpha, beta: exponents of score and IoU, >= 0.
        ignore_ioa: background is ignored if more than this share of it lies in an ignore area
            (crowd, difficult).

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.sites.assigners.contract import Outputs
    >>> boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    >>> predicted = torch.tensor([[[0.0, 0, 10, 9]], [[0, 0, 10, 8]], [[0, 0, 10, 7]]])
    >>> scores = torch.full((3, 4), 0.5)
    >>> candidates = Unassigned([boxes], [boxes[:1]], [torch.tensor([3])], [boxes[:0]],
    ...                         predict=lambda rows: Outputs(scores[rows], predicted[rows]))
    >>> found = TaskAligned(k=2, beta=1)(candidates)
    >>> found.labels, found.soft_targets  # t = 0.45, 0.4, 0.35; 0.9 * t / 0.45
    (tensor([3, 3, 0]), tensor([0.9000, 0.8000, 0.0000]))
    """

    k: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    ignore_ioa: float = 0.5

    def __post_init__(self) -> None:
        check_at_least_one("k", self.k)
        check_not_negative("alpha", self.alpha)
        check_not_negative("beta", self.beta)
        check_share("ignore_ioa", self.ignore_ioa)

    def __call__(self, candidates: Unassigned) -> Assigned:
        """Label the images of a batch by one preview of all candidates."""
        everything = torch.arange(sum(candidates.sizes), device=candidates.stacked.device)
        seen = candidates.predict(everything)
        images = zip(
            candidates.boxes,
            candidates.objects,
            candidates.object_labels,
            seen.scores.split(candidates.sizes),
            seen.boxes.split(candidates.sizes),
            strict=True,
        )
        owner, quality = zip(*[self._align(*image) for image in images], strict=True)
        pairs = zip(owner, quality, strict=True)
        weights = [torch.where(own >= 0, value, 1) for own, value in pairs]
        return assemble_owned(candidates, owner, self.ignore_ioa, quality, weights)

    def _align(
        self, boxes: Tensor, objects: Tensor, labels: Tensor, scores: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[N] owners and their soft targets, 0 for background.

        Args:
            scores: [N, C+1]; seen: [N, D, 4] predicted boxes.
        """
        quality = scores.new_zeros(len(boxes))
        if not len(boxes) or not len(objects):
            return no_owners(boxes), quality
        parts = [
            self._best(objects[part], labels[part], scores, seen)
            for part in object_chunks(objects, boxes)
        ]
        rows, t, u = (torch.cat(column) for column in zip(*parts, strict=True))  # [G, k]
        chosen = (t > 0) & inside(centers(boxes[rows]), objects[:, None])
        owner = owners(rows, u, chosen, len(boxes))
        chosen &= owner[rows] == torch.arange(len(rows), device=rows.device)[:, None]
        t, u = t.where(chosen, 0), u.where(chosen, 0)
        smallest_t = torch.finfo(t.dtype).tiny
        normalized = t / t.amax(1, keepdim=True).clamp(min=smallest_t) * u.amax(1, keepdim=True)
        quality[rows[chosen]] = normalized[chosen]
        return owner, quality

    def _best(
        self, objects: Tensor, labels: Tensor, scores: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[G, k] rows of highest t, their t and their u."""
        u = pair_ious(seen, objects, labels)
        t = scores[:, labels].T ** self.alpha * u**self.beta
        rows = smallest(-t, self.k)
        return rows, t.gather(1, rows), u.gather(1, rows)
