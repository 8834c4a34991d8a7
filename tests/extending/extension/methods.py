"""A sampler, two losses, an assigner and a weigher."""

import torch
from torch import Tensor, nn

from frcnn.losses import CrossEntropy, Samples
from frcnn.losses.activation import SoftmaxLoss
from frcnn.sites.assigners import Assigned, MaxIoU, Unassigned
from frcnn.sites.weighers import Weighed
from samplers import Candidates
from samplers.quota import take_quota


class Banded:
    """Negatives whose IoU is nearest to 0.2 first; positives have weight ``beta``."""

    def __init__(self, budget: int, width: float, beta: float) -> None:
        if not 0 < width <= 1:
            raise ValueError(f"width must be in (0, 1], got {width}")
        self.budget, self.width, self.beta = budget, width, beta

    def __call__(self, candidates: Candidates) -> Tensor:
        near = -((candidates.ious - 0.2).abs() / self.width)
        picked = take_quota(candidates, near, self.budget, 0.25)
        return torch.where(candidates.positive, self.beta * picked, picked)


class Counted(nn.Module):
    """Cross entropy that counts the objects of each class that it has learned from."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = CrossEntropy()
        self.normalizer, self.scores = self.inner.normalizer, self.inner.scores
        self.initial_bias = self.inner.initial_bias
        self.register_buffer("counts", torch.zeros(4))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, samples: Samples) -> Tensor:
        if samples.training:
            counts = torch.bincount(samples.labels, minlength=len(self.counts))
            self.counts += samples.total(counts.to(self.counts))
            self.steps += 1
        return self.inner(samples)


class SoftLabels(SoftmaxLoss):
    """Cross entropy with the label's share ``IoU^power``, the rest on background."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def __call__(self, samples: Samples) -> Tensor:
        given = samples.ious if samples.soft_targets is None else samples.soft_targets
        share = torch.where(samples.labels > 0, given.pow(self.power), 1.0)
        logs = samples.logits.log_softmax(1)
        own = logs.gather(1, samples.labels[:, None])[:, 0]
        return -(share * own + (1 - share) * logs[:, 0])


class ByScore:
    """``MaxIoU`` on the *predicted* boxes; the soft target is the IoU."""

    def __init__(self, high: float) -> None:
        self.inner = MaxIoU(high, high)

    def __call__(self, candidates: Unassigned) -> Assigned:
        seen = candidates.predict(torch.arange(len(candidates.stacked)))
        best = (
            seen.scores[:, 1:].argmax(1) + 1 if seen.boxes.shape[1] > 1 else 0 * seen.scores[:, 0]
        )
        decoded = seen.boxes[torch.arange(len(best)), best.long()]
        moved = Unassigned(
            decoded.split(candidates.sizes),
            candidates.objects,
            candidates.object_labels,
            candidates.ignore,
        )
        found = self.inner(moved)
        found.boxes, found.soft_targets = candidates.stacked, found.ious
        return found


class Learned(nn.Module):
    """``exp(-s) L + s`` with a learned s for each of the two terms, and its own optimizer."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(2))
        self.lr = lr

    def own_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)

    def forward(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        weights = (-self.s).exp()
        # The shares of all processes and all batches of the step sum to s.
        own = self.s.new_tensor(len(samples.labels))
        share = own / samples.step_total(own).clamp(min=1)
        return Weighed(
            weights[0] * class_values, weights[1] * box_values, {"s": share * self.s.sum()}
        )
