"""Dynamic smooth L1 (Dynamic R-CNN, Zhang et al., ECCV 2020, arXiv 2004.06002).

Shape letters: P positives.
"""

import torch
from torch import Tensor, nn

from frcnn.losses.samples import BOX_PER, Divided, Per, Samples
from samplers.arguments import check_above_zero, check_at_least_one

SMALLEST_BETA = 1e-15


class DynamicSmoothL1(Divided, nn.Module):
    """Smooth L1 whose ``beta`` falls with the errors of the proposals.

    The error of a positive is the mean of its absolute targets ``dx`` and ``dy``. In each batch the
    ``top``-th smallest error per image is recorded: number ``top`` times the images that have
    positives, or the largest error if there are fewer of these. Every ``interval`` batches beta
    becomes the median of the last ``interval`` of these numbers, but at most ``beta``, and stays
    as it is if the median is nearly 0.

    Differs from mmdetection's: the batch is that of all processes (there one GPU), images without
    positives do not count, a batch without any positive is not counted, and the state is saved.
    Appended objects are positives with an error of 0 and count, as there.

    With ``trainer.accumulate`` an optimizer step has several batches.

    Args:
        beta: the first and largest beta, > 0.
        top: K_beta, positives per image, at least 1.
        interval: C, batches between updates, at least 1.
        per: as for ``SmoothL1``.

    Raises:
        ValueError: an argument out of range, or a loaded state that this cannot have had.

    >>> from frcnn.losses.examples import few_samples
    >>> loss = DynamicSmoothL1(top=1, interval=1)
    >>> batch = few_samples([1], targets=[[0.4, 0.2, 0, 0]])
    >>> batch.training = True
    >>> loss(batch), loss.now  # (0.16 + 0.04) / 2; beta is now the mean of 0.4 and 0.2
    (tensor([0.1000]), tensor(0.3000))
    >>> loss(batch)  # 0.4 - 0.3 / 2 + 0.04 / (2 * 0.3)
    tensor([0.3167])
    """

    now: Tensor
    errors: Tensor
    steps: Tensor

    def __init__(
        self, beta: float = 1.0, top: int = 10, interval: int = 100, per: Per = "sample"
    ) -> None:
        super().__init__(per, BOX_PER)
        check_above_zero("beta", beta)
        check_at_least_one("top", top)
        check_at_least_one("interval", interval)
        self.beta, self.top, self.interval = beta, top, interval
        self.register_buffer("now", torch.tensor(float(beta)))
        self.register_buffer("errors", torch.zeros(interval))  # recorded since the last update
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # how many of them
        self.register_load_state_dict_post_hook(check_state)

    def forward(self, samples: Samples) -> Tensor:
        """[P] losses of the positives; in training beta moves, for the next batch."""
        difference = (samples.deltas - samples.targets).abs()
        beta = self.now.to(difference)
        square = 0.5 * difference.square() / beta
        loss = torch.where(difference < beta, square, difference - 0.5 * beta).sum(1)
        if samples.training:
            self._record(samples)
        return loss

    @torch.no_grad()
    def _record(self, samples: Samples) -> None:
        """Record this batch's error, and update beta if it is time to."""
        errors, _ = samples.gather(samples.targets[:, :2].abs().mean(1))
        own_images = len(samples.image[samples.positive].unique())
        images = int(samples.total(errors.new_tensor(float(own_images))))
        if not len(errors):
            return
        place = min(self.top * images, len(errors))
        self.errors[self.steps] = errors.kthvalue(place).values.to(self.errors)
        self.steps += 1
        if self.steps == self.interval:
            median = self.errors.quantile(0.5)
            if median >= SMALLEST_BETA:
                self.now = median.clamp(max=self.beta)  # a new tensor: backward needs the old one
            self.errors.zero_()
            self.steps.zero_()


def check_state(loss: nn.Module, keys: object) -> None:
    """Raise ValueError unless a loaded state is one that a ``DynamicSmoothL1`` can have."""
    assert isinstance(loss, DynamicSmoothL1)
    if not 0 < loss.now <= loss.get_buffer("now").new_tensor(loss.beta):
        raise ValueError(f"beta is {loss.now.item()}, not in (0, {loss.beta}]")
    if not 0 <= loss.steps < loss.interval:
        raise ValueError(f"{loss.steps.item()} batches of {loss.interval} are recorded")
    if not (loss.errors.isfinite() & (loss.errors >= 0)).all():
        raise ValueError("the recorded errors are not finite numbers >= 0")
