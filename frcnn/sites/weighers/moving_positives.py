"""detectron2's normalizer of RetinaNet: a moving average of the number of positives."""

import torch
from torch import Tensor, nn

from frcnn.losses import Samples
from frcnn.sites.weighers.contract import Weighed
from samplers.arguments import check_above_zero


class MovingPositives(nn.Module):
    """Divides both terms by ``n <- momentum n + (1 - momentum) max(1, P)``, not by ``per``.

    P counts the positives of the step, in all processes. detectron2 counts per GPU, and its
    checkpoints do not have n.

    Args:
        momentum: in [0, 1).
        start: n before the first step, above 0.

    Raises:
        ValueError: an argument out of range.

    >>> from frcnn.losses.examples import few_samples
    >>> weigher = MovingPositives(momentum=0.5, start=4.0)
    >>> weighed = weigher(few_samples([1, 1, 0]), torch.ones(3), torch.ones(2))
    >>> weighed.normalizer  # 0.5 * 4 + 0.5 * 2
    tensor(3.)
    """

    def __init__(self, momentum: float = 0.9, start: float = 100.0) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        check_above_zero("start", start)
        self.momentum = momentum
        self.average: Tensor
        self.register_buffer("average", torch.tensor(float(start)))

    def forward(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        """[K] and [P] losses -> the same, and their normalizer."""
        positives = self.average.new_full((), len(samples.positive))
        positives = samples.step_total(positives).clamp(min=1)
        average = self.average.lerp(positives, 1 - self.momentum)
        if samples.training:
            self.average = average
        return Weighed(class_values, box_values, normalizer=average)
