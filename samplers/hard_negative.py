"""Hard negative mining (SSD, Liu et al., ECCV 2016, arXiv 1512.02325, sec. 2.2)."""

import torch
from torch import Tensor

from samplers.candidates import Candidates
from samplers.quota import top


class HardNegative:
    """Every positive, and the negatives of highest class loss at a ratio to them, per image.

    At the RPN this is the recipe known as "OHEM at the RPN": all anchors, three hardest negatives
    for each positive (with ``loss.rpn.per=positive``). The loss decides among negatives only.

    Differs from torchvision's SSD: an image without positives keeps ``min_negatives`` negatives
    instead of teaching nothing, and negatives that run out are never made up for by counting
    positives twice. What the losses are divided by is theirs to say (``per``): SSD divides by the
    positives.

    Args:
        ratio: most negatives per positive, >= 0; 3 is the paper's.
        min_negatives: negatives of an image without positives, >= 0; 0 is the paper's.

    Raises:
        ValueError: an argument out of range.
        FloatingPointError: on call, if a loss is not finite.
    """

    def __init__(self, ratio: float = 3.0, min_negatives: int = 0) -> None:
        if not ratio >= 0:
            raise ValueError(f"ratio must be at least 0, got {ratio}")
        if min_negatives < 0:
            raise ValueError(f"min_negatives must be at least 0, got {min_negatives}")
        self.ratio = ratio
        self.min_negatives = min_negatives

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        negative = candidates.negative
        positives = candidates.by_image(candidates.positive).sum(1)
        at_the_ratio = (self.ratio * positives).floor().long()
        quota = torch.where(positives > 0, at_the_ratio, self.min_negatives)
        loss = candidates.losses("class_loss")
        hardest = top(candidates, loss, negative, quota)
        return (candidates.positive | hardest).float()
