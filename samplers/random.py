"""Random sampling, the baseline of every framework (Faster R-CNN, arXiv 1506.01497, sec. 3.1.3)."""

import torch
from torch import Tensor

from samplers.candidates import Candidates
from samplers.quota import check_budget, count, take_quota


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
        rank = random_rank(candidates)
        return take_quota(candidates, rank, self.batch_size_per_image, self.positive_fraction)


def random_rank(candidates: Candidates) -> Tensor:
    """[N] int64: a random order of the positives and one of the negatives of every image.

    The permutations are drawn image by image, positives first, as torchvision does, so that the
    same seed gives the same picks. Ignored candidates have rank 0.
    """
    rank = torch.zeros_like(candidates.labels)
    for image in range(candidates.num_images):
        here = candidates.image == image
        for kind in (candidates.positive, candidates.negative):
            rows = torch.where(here & kind)[0]
            generator = candidates.generator(image)
            order = torch.randperm(len(rows), generator=generator, device=rank.device)
            rank[rows[order]] = torch.arange(len(rows), device=rank.device)
    return rank


def noise(candidates: Candidates) -> Tensor:
    """[N] uniform in [0, 1), drawn image by image, so that an image's draw is its own."""
    sizes = count(candidates.image, candidates.num_images).tolist()
    drawn = [
        torch.rand(size, generator=candidates.generator(image), device=candidates.image.device)
        for image, size in enumerate(sizes)
    ]
    return torch.cat(drawn) if drawn else candidates.ious.new_zeros(0)
