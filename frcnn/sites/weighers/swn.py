"""Unified Sample Weighting Network (Cai et al., CVPR 2020, arXiv 2006.06568).

Shape letters: K samples, P positives among them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frcnn.losses import Samples
from frcnn.losses.activation import label_scores
from frcnn.losses.samples import step_count
from frcnn.losses.soft_targets import predicted_ious
from frcnn.sites.weighers.contract import Weighed
from frcnn.sites.weighers.groups import group_sums, groups
from samplers.arguments import check_above_zero, check_not_negative

WIDTH = 64
# Columns of the features: IoU, score, class loss, and the box loss of each coordinate.
SIZES = (1, 1, 1, 4)
CLASS_LOSS, OTHERS = 2, (0, 1, 3)  # places among them
SPREAD = 1e-4  # standard deviation of the first weights


class SWN(nn.Module):
    """``exp(-s) L + regularizer s`` with an s of each sample for each of the two losses.

    s is the logarithm of a variance (2 m in the paper). A small network predicts it from what the
    detector says of the sample now (``features``). The s of the class losses is averaged over the
    positives and, apart from them, over the negatives; each box loss has an s of its own. The
    term ``swn`` is ``regularizer`` times the sum of the mean s of class losses in each of these
    groups, and of box losses.

    Within the limit, each group comes to contribute ``regularizer`` to the loss: ``EqualTerms`` is
    the control without a network. Where losses are small the term is negative.

    Differs from released code: averages are over all processes, and the features have no gradient
    in one stage either.

    Args:
        lr, weight_decay: of the network's own Adam. The run's schedule scales lr.
        regularizer: lambda, > 0.
        by_label: average positives and negatives apart; False = one average, as in one stage.
        limit: s is in [-limit, limit], > 0.

    Raises:
        ValueError: an argument out of range.

    A new network gives every loss a weight of 1:

    >>> from frcnn.losses.examples import few_samples
    >>> box = [[0, 0, 10, 10]]
    >>> batch = few_samples([1, 0], deltas=box, objects=box)
    >>> weighed = SWN()(batch, torch.ones(2), torch.ones(1))
    >>> weighed.class_values.detach(), weighed.box_values.detach()
    (tensor([1., 1.]), tensor([1.]))
    """

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        regularizer: float = 0.5,
        by_label: bool = True,
        limit: float = 2.0,
    ) -> None:
        super().__init__()
        for name, value in (("lr", lr), ("regularizer", regularizer), ("limit", limit)):
            check_above_zero(name, value)
        check_not_negative("weight_decay", weight_decay)
        self.lr, self.weight_decay = lr, weight_decay
        self.regularizer, self.by_label, self.limit = regularizer, by_label, limit
        # The detector's first weights stay those of a run without this network.
        with torch.random.fork_rng(devices=[]):
            self.branches = nn.ModuleList(
                nn.Sequential(_linear(size, WIDTH), nn.ReLU(), _linear(WIDTH, WIDTH), nn.ReLU())
                for size in SIZES
            )
            self.merge, self.out = _linear(len(SIZES) * WIDTH, WIDTH), _linear(WIDTH, 2)

    def own_optimizer(self) -> torch.optim.Optimizer:
        """Adam beside the detector's optimizer."""
        return torch.optim.Adam(self.parameters(), self.lr, weight_decay=self.weight_decay)

    def forward(self, samples: Samples, class_values: Tensor, box_values: Tensor) -> Weighed:
        """[K] and [P] losses -> weighted ones, and the term ``swn``."""
        known = features(
            samples.positive,
            predicted_ious(samples),
            label_scores(samples),
            class_values,
            samples.deltas - samples.targets,
        )
        s_class, s_box = self.log_variances(known, samples.positive).to(class_values).unbind(1)
        s_box = s_box[samples.positive]
        group = groups(samples, self.by_label)
        own_sums, own_counts = (
            group_sums(values, group) for values in (s_class, torch.ones_like(s_class))
        )
        means = samples.total(own_sums) / samples.total(own_counts).clamp(min=1)
        # The shares of all processes and all batches of the step sum to the term.
        term = (own_sums / samples.step_total(own_counts).clamp(min=1)).sum()
        term = term + s_box.sum() / step_count(samples, len(s_box))
        return Weighed(
            (-means).exp()[group] * class_values,
            (-s_box).exp() * box_values,
            {"swn": self.regularizer * term},
        )

    def log_variances(self, features: Tensor, positive: Tensor) -> Tensor:
        """[K, 7] features, [P] rows of positives -> [K, 2] s of both losses.

        Background differs in its class loss alone. So the other branches see the positives and
        one row that stands for all background, of which one stage has a hundred thousand.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.out.weight)
            few = torch.cat([features[positive], features.new_zeros(1, features.shape[1])])
            own, others = self._merged(features, CLASS_LOSS), self._merged(few, *OTHERS)
            background = others[-1]
            merged = own + background + self.merge.bias
            merged = merged.index_add(0, positive, others[:-1] - background)
            return self.out(merged.relu()).clamp(-self.limit, self.limit)

    def _merged(self, features: Tensor, *branches: int) -> Tensor:
        """[rows, 7] features -> [rows, WIDTH] what these branches add to the merging layer."""
        parts, weights = features.split(SIZES, 1), self.merge.weight.split(WIDTH, 1)
        added = [F.linear(self.branches[at](parts[at]), weights[at]) for at in branches]
        return torch.stack(added).sum(0)


@torch.no_grad()
def features(
    positive: Tensor, ious: Tensor, scores: Tensor, class_losses: Tensor, errors: Tensor
) -> Tensor:
    """What the network reads of K samples, without gradient.

    Args:
        positive: [P] rows of the positives.
        ious: [P] of the predicted boxes with their objects.
        scores: [P] of the objects' classes.
        class_losses: [K].
        errors: [P, 4] errors of the box deltas; the network reads their smooth L1 with beta 1,
            whatever the site's box loss is.

    Returns:
        [K, 7] IoU, score, class loss, and box loss by coordinate; background has 0 but for its
        class loss.
    """
    boxes = F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")
    own = torch.cat([ious[:, None], scores[:, None], boxes], 1).to(class_losses)
    columns = class_losses.new_zeros(len(class_losses), 1 + own.shape[1])
    columns[:, 2] = class_losses
    columns[positive, :2], columns[positive, 3:] = own[:, :2], own[:, 2:]
    return columns


def _linear(before: int, after: int) -> nn.Linear:
    layer = nn.Linear(before, after)
    nn.init.normal_(layer.weight, std=SPREAD)
    nn.init.zeros_(layer.bias)
    return layer
