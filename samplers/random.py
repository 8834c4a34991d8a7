"""Random sampling, the baseline of every framework (Faster R-CNN, arXiv 1506.01497, sec. 3.1.3)."""

import torch
from torch import Tensor

from samplers.candidates import Candidates
from samplers.quota import check_budget, take_quota


class Random:
    """B candidates an image, at most a fraction of them positive, uniformly at random.

    Defaults of torchvision, detectron2 and mmdetection: 256 at 0.5 (RPN), 512 at 0.25 (RCNN).
    Draws exactly what torchvision's sampler draws from the same generator state.

    Args:
        batch_size_per_image: B, at least 1.
        positive_fraction: in [0, 1].

    Raises:
        ValueError: a budget out of range.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        check_budget(batch_size_per_image, positive_fraction)
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        order = shuffled(candidates)
        return take_quota(candidates, order, self.batch_size_per_image, self.positive_fraction)


def shuffled(candidates: Candidates) -> Tensor:
    """[N] float priorities, a random order of the positives and of the negatives of every image.

    On a CPU these are the permutations that torchvision draws, image by image, positives first, so
    that the same seed gives the same picks. On a GPU their lengths would have to be waited for.
    """
    if candidates.labels.device.type != "cpu":
        return noise(candidates)
    priority = torch.zeros(len(candidates.labels))
    first = 0
    for image, labels in enumerate(candidates.labels.split(candidates.sizes)):
        for kind in (labels > 0, labels == 0):
            rows = first + torch.where(kind)[0]
            order = torch.randperm(len(rows), generator=candidates.generator(image))
            priority[rows[order]] = -torch.arange(len(rows), dtype=torch.float32)
        first += len(labels)
    return priority


def noise(candidates: Candidates) -> Tensor:
    """[N] uniform in [0, 1), drawn image by image, so that an image's draw is its own."""
    device = candidates.labels.device
    drawn = [
        torch.rand(size, generator=candidates.generator(image), device=device)
        for image, size in enumerate(candidates.sizes)
    ]
    return torch.cat(drawn)
