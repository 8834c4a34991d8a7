"""Bucketed Rank & Sort loss (Yavuz et al., ECCV 2024, arXiv 2407.14204).

Shape letters: Q positives and M negatives of all processes; see ``ranking``.
"""

import torch
from torch import Tensor

from frcnn.losses.rank_sort import RankSort, rank_and_sort
from frcnn.losses.ranking import Ranked


class BucketedRankSort(RankSort):
    """Rank & Sort with the negatives between two positives replaced by their mean logit.

    Q positives then meet at most Q + 1 numbers, not M negatives: ``O(M log M + Q^2)`` in place of
    ``O(M Q)`` steps. Each negative of a bucket gets the same part of the bucket's error. The
    gradients are those of ``RankSort`` where ``delta`` is near 0; with delta 0.5 they differ by
    some per cent.

    Both negatives are above the positive; their mean is 0.75:

    >>> from frcnn.losses.examples import few_samples
    >>> box, logits = [[0, 0, 10, 10]], [[0, 0], [0, 0.5], [0, 1]]
    >>> BucketedRankSort()(few_samples([1, 0, 0], logits, deltas=box, objects=box))
    tensor([0.4000, 0.2000, 0.2000])
    """

    def errors(self, found: Ranked) -> tuple[Tensor, Tensor, Tensor]:
        """See ``RankSort.errors``."""
        bucket, means, counts = buckets(found)
        up, down, pushed = rank_and_sort(found, means, counts, self.delta)
        return up, down, pushed[bucket]


def buckets(found: Ranked) -> tuple[Tensor, Tensor, Tensor]:
    """[M] bucket of each negative, [Q + 1] mean logit of each bucket, [Q + 1] their counts.

    The number of a bucket is the number of positives below it; the mean of an empty one is 0.
    """
    bucket = torch.searchsorted(found.positives.sort().values, found.negatives.contiguous())
    empty = found.positives.new_zeros(len(found.positives) + 1)
    counts = empty.index_add(0, bucket, torch.ones_like(found.negatives))
    means = empty.index_add(0, bucket, found.negatives) / counts.clamp(min=1)
    return bucket, means, counts
