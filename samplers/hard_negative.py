"""Hard negative mining (SSD, Liu et al., ECCV 2016, arXiv 1512.02325, sec. 2.2)."""

import torch
from torch import Tensor

from samplers.arguments import check_not_negative
from samplers.candidates import Candidates
from samplers.quota import pick_per_image


class HardNegative:
    """Every positive, and per positive the ``ratio`` negatives of highest class loss, per image.

    At the RPN this is the recipe known as "OHEM at the RPN": all anchors, three hardest negatives
    per positive (with ``loss.rpn.per=positive``). The loss ranks only negatives.

    Differs from torchvision's SSD: an image without positives keeps ``min_negatives`` negatives
    (torchvision: none). If negatives run out, fewer are kept (torchvision counts positives twice).
    The class loss chooses its normalizer (``per``); SSD divides by the number of positives.

    One positive allows two negatives, the hardest two; the last row is ignored:

    >>> from samplers.examples import one_image
    >>> candidates = one_image(labels=[1, 0, 0, 0, -1], loss=[0.1, 0.5, 0.9, 0.7, 0.0])
    >>> HardNegative(ratio=2)(candidates).tolist()
    [1.0, 0.0, 1.0, 1.0, 0.0]

    Args:
        ratio: largest number of negatives per positive, >= 0; the paper: 3.
        min_negatives: number of negatives in an image without positives, >= 0; the paper: 0.
            ``sampler=hard_negative`` has 32, 16 at the RPN.

    Raises:
        ValueError: an argument out of range.
        FloatingPointError: on call, if a loss is not finite.
    """

    def __init__(self, ratio: float = 3.0, min_negatives: int = 0) -> None:
        check_not_negative("ratio", ratio)
        check_not_negative("min_negatives", min_negatives)
        self.ratio = float(ratio)
        self.min_negatives = min_negatives

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        loss = candidates.losses("class_loss")
        quota = self._num_negatives(candidates)
        hardest = pick_per_image(candidates, loss, candidates.negative, quota)
        return (candidates.positive | hardest).float()

    def _num_negatives(self, candidates: Candidates) -> Tensor:
        """[I] int64: how many negatives an image may keep."""
        positives = candidates.pad_by_image(candidates.positive).sum(1)
        # No image has more than N; the bound also keeps a very large ratio within 64 bits.
        most = len(candidates.labels)
        at_the_ratio = (self.ratio * positives).clamp(max=most).long()
        return torch.where(positives > 0, at_the_ratio, min(self.min_negatives, most))
