"""The two groups of samples that weighers treat apart: positives and negatives.

Shape letters: K kept samples of the batch.
"""

import torch
from torch import Tensor

from frcnn.losses import Samples


def groups(samples: Samples, by_label: bool) -> Tensor:
    """[K] int64: 1 for positives and 0 for negatives; all 0 if not ``by_label``."""
    group = torch.zeros_like(samples.labels)
    if by_label:
        group[samples.positive] = 1
    return group


def group_sums(values: Tensor, group: Tensor) -> Tensor:
    """[K] values -> [2] sums of the two groups."""
    return values.new_zeros(2).index_add(0, group, values)
