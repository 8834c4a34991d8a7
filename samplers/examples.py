"""Small batches written by hand, for examples and for the tests of a new sampler."""

from collections.abc import Sequence

import torch
from torch import Tensor

from samplers.candidates import Candidates, Prediction


def one_image(
    labels: Sequence[int],
    loss: Sequence[float] | None = None,
    scores: Sequence[float] | None = None,
    ious: Sequence[float] | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    gt: Sequence[int] | None = None,
    gt_boxes: Sequence[Sequence[float]] = ((0, 0, 10, 10),),
) -> Candidates:
    """The candidates of one image, with a network whose predictions are given.

    Args:
        labels: [N] -1 ignore, 0 background, 1 object.
        loss: [N] class loss, which is also the total loss; 1 if not given.
        scores: [N] probability of the object class in (0, 1); 0.5 if not given.
        ious: [N] IoU with the matched object; 0 if not given.
        boxes: [N, 4] xyxy pixels, as candidate and as decoded box; if not given, they lie apart.
        gt: [N] row of the matched object; 0 if not given.
        gt_boxes: [G, 4] xyxy pixels.
    """
    n = len(labels)
    apart = [[100.0 * i, 0.0, 100.0 * i + 10, 10.0] for i in range(n)]
    box = torch.tensor(apart if boxes is None else boxes).float().reshape(-1, 4)
    score = torch.tensor([0.5] * n if scores is None else scores)
    logits = torch.stack([1 - score, score], 1).log()
    losses = torch.tensor([1.0] * n if loss is None else loss)

    def predict(rows: Tensor) -> Prediction:
        return Prediction(logits[rows], box[rows], losses[rows])

    return Candidates(
        boxes=box,
        labels=torch.tensor(labels, dtype=torch.int64),
        ious=torch.tensor([0.0] * n if ious is None else ious),
        gt=torch.tensor([0] * n if gt is None else gt, dtype=torch.int64),
        gt_boxes=torch.tensor(gt_boxes).float().reshape(-1, 4),
        image=torch.zeros(n, dtype=torch.int64),
        predict=predict,
        sizes=[n],
    )
