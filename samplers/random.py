"""Random sampling, the baseline of every framework (Faster R-CNN, arXiv 1506.01497, sec. 3.1.3)."""

import torch
from torch import Tensor

from samplers.arguments import check_budget
from samplers.candidates import Candidates
from samplers.host import reads_are_free
from samplers.quota import take_quota


class Random:
    """B candidates per image, at most a fraction of them positive, uniformly at random.

    Defaults of torchvision, detectron2 and mmdetection: 256 at 0.5 (RPN), 512 at 0.25 (RCNN).
    On a CPU it draws exactly what torchvision's sampler draws from the same generator state.

    A quarter of 4 is one positive; three negatives fill the budget; the last row is ignored:

    >>> from samplers.examples import one_image
    >>> weights = Random(4, 0.25)(one_image(labels=[1, 1, 1, 0, 0, 0, 0, -1]))
    >>> weights[:3].sum().item(), weights[3:7].sum().item(), weights[7].item()
    (1.0, 3.0, 0.0)

    Args:
        batch_size_per_image: B, at least 1.
        positive_fraction: in [0, 1].

    Raises:
        ValueError: an argument out of range.
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
    """[N] float priorities: a random order of the positives, and of the negatives, per image.

    On a CPU these are the permutations that torchvision draws, image by image and positives first,
    so that the same seed gives the same picks. A GPU would have to wait for their lengths, so
    there the priorities are plain random numbers.
    """
    if not reads_are_free(candidates.labels.device):
        return noise(candidates)
    priority = torch.zeros(len(candidates.labels))
    first = 0
    for image, labels in enumerate(candidates.labels.split(list(candidates.sizes))):
        for mask in (labels > 0, labels == 0):
            rows = first + torch.where(mask)[0]
            order = torch.randperm(len(rows), generator=candidates.generator(image))
            priority[rows[order]] = -torch.arange(len(rows), dtype=torch.float32)
        first += len(labels)
    return priority


def noise(candidates: Candidates) -> Tensor:
    """[N] uniform in [0, 1), drawn per image: the draw of an image depends on no other image."""
    device = candidates.labels.device
    drawn = [
        torch.rand(size, generator=candidates.generator(image), device=device)
        for image, size in enumerate(candidates.sizes)
    ]
    return torch.cat(drawn)
