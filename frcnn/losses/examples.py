"""Small batches written by hand, for examples and for the tests of a new loss."""

from collections.abc import Sequence

import torch

from frcnn.losses.activation import softmax_scores
from frcnn.losses.samples import Samples

Rows = Sequence[Sequence[float]]


def few_samples(
    labels: Sequence[int],
    logits: Rows | None = None,
    deltas: Rows | None = None,
    targets: Rows | None = None,
    objects: Rows | None = None,
) -> Samples:
    """The samples of one image, with a network whose outputs are given.

    Decoding changes nothing: the deltas are the predicted boxes too.

    Args:
        labels: [K] 0 background, 1..C.
        logits: [K, C+1]; if not given, 0 for background and one object class.
        deltas: [P, 4] of the positives; 0 if not given.
        targets: [P, 4] encoded objects; 0 if not given.
        objects: [P, 4] xyxy pixels; 0 if not given.
    """
    label = torch.tensor(labels, dtype=torch.int64)
    positive = torch.where(label > 0)[0]
    zeros = [[0.0] * 4] * len(positive)
    rows = [
        torch.tensor(zeros if given is None else given).float().reshape(-1, 4)
        for given in (deltas, targets, objects)
    ]
    return Samples(
        logits=torch.tensor([[0.0, 0.0]] * len(labels) if logits is None else logits).float(),
        labels=label,
        weights=torch.ones(len(labels)),
        positive=positive,
        deltas=rows[0],
        targets=rows[1],
        objects=rows[2],
        decode=lambda given: given,
        scores=softmax_scores,
        image=torch.zeros(len(labels), dtype=torch.int64),
    )
