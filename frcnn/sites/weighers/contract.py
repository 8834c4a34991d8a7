"""What a weigher is given and what it returns.

Shape letters: K kept samples of the batch, P positives among them.
"""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from frcnn.losses import Samples
from frcnn.losses.samples import Normalizer


@dataclass
class Weighed:
    """What a weigher makes of the two losses.

    Attributes:
        class_values: [K] weighted class losses, with gradient.
        box_values: [P] weighted box losses, with gradient.
        terms: further scalar terms by name, such as a regularizer, already normalized. The shares
            of all processes and all batches of the step sum to the term. They are called
            ``loss_SITE_NAME`` and must not have the name of another term.
        normalizer: what both sums are divided by, in place of the losses' own normalizers; None =
            theirs.
    """

    class_values: Tensor
    box_values: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    normalizer: Normalizer | None = None


class Weigher(Protocol):
    """Weighs the two losses of each sample after both are computed, before they are summed.

    It gets the losses with gradient, so that it decides what to detach. One with parameters is an
    ``nn.Module``; it may have ``own_optimizer() -> torch.optim.Optimizer`` of these parameters.
    The run's schedule also scales its learning rate, and ``trainer.clip_norm`` counts its
    gradients. ``unfit`` as for a class loss. The sampler's weights multiply the class losses after
    the weigher.
    """

    def __call__(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        """[K] and [P] losses -> weighted ones."""
