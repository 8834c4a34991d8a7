"""How well a site's scores serve classification and detection, to plot and to compare."""

from __future__ import annotations

import torch
from torch import Tensor

from frcnn.tracking.sampling import mean_entry
from samplers import Candidates, Prediction


@torch.no_grad()
def prediction_report(
    candidates: Candidates, weights: Tensor, rows: Tensor, prediction: Prediction
) -> dict[str, float]:
    """Summary numbers of what a site predicts for a batch.

    Args:
        candidates: all candidates of a batch, N over its images.
        weights: [N] >= 0, what the sampler returned; 0 = not sampled.
        rows: [K] the candidates that are not ignored.
        prediction: for these rows.

    Returns:
        Scalars by name; one without values has no entry.

        ``accuracy_positive``, ``accuracy_negative``: share of the sampled candidates whose label
        has the highest score, background included. ``score_iou_correlation``: Spearman's rank
        correlation over all positives, of the score of the label and the IoU of the predicted box
        with its object. ``best_is_best``: share of the objects with two or more positives whose
        positive of highest score has the highest IoU; a tie counts as the highest.
    """
    labels, picked = candidates.labels[rows], weights[rows] > 0
    right = prediction.activation(prediction.logits[picked].float()).argmax(1) == labels[picked]
    objects = labels[picked] > 0
    return {
        **mean_entry("accuracy_positive", right[objects]),
        **mean_entry("accuracy_negative", right[~objects]),
        **_of_positives(candidates, rows, prediction),
    }


def _of_positives(candidates: Candidates, rows: Tensor, prediction: Prediction) -> dict[str, float]:
    positive = torch.where(candidates.labels[rows] > 0)[0]
    label = candidates.labels[rows[positive]]
    scores = prediction.activation(prediction.logits[positive].float())
    score = scores.gather(1, label[:, None])[:, 0]
    gt = candidates.gt[rows[positive]]
    iou = paired_ious(prediction.boxes[positive], candidates.gt_boxes[gt])
    return {
        **mean_entry("score_iou_correlation", spearman(score, iou)),
        **mean_entry("best_is_best", best_is_best(gt, score, iou)),
    }


def paired_ious(boxes: Tensor, others: Tensor) -> Tensor:
    """[P, 4] xyxy, [P, 4] xyxy -> [P] the IoU of each pair; 0 where both are empty."""
    boxes, others = boxes.float(), others.float()
    corner = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    shared = corner.clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1)
    return shared / (areas - shared).clamp(min=torch.finfo(shared.dtype).tiny)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """[P] and [P] values -> [1] Spearman's rank correlation; [0] where one of them is constant."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    ranks -= ranks.mean(1, keepdim=True)
    scale = ranks.norm(dim=1).prod()
    return (ranks.prod(0).sum() / scale)[None] if scale > 0 else ranks[0, :0]


def _ranks(values: Tensor) -> Tensor:
    """[P] float64 ranks; equal values share the mean of theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def best_is_best(gt: Tensor, score: Tensor, iou: Tensor) -> Tensor:
    """Whether an object's box of highest score is its box of highest IoU.

    Args:
        gt: [P] the object of each box.
        score, iou: [P] of each box.

    Returns:
        [objects with two or more boxes] bool; a tie counts as the highest.
    """
    _, place, counts = gt.unique(return_inverse=True, return_counts=True)
    best = (score == _largest(score, place, len(counts))[place]) & (
        iou == _largest(iou, place, len(counts))[place]
    )
    return counts.new_zeros(len(counts)).index_add(0, place, best.long())[counts > 1] > 0


def _largest(values: Tensor, place: Tensor, size: int) -> Tensor:
    """[P] values, [P] groups -> [size] the largest of each group."""
    return values.new_zeros(size).scatter_reduce(0, place, values, "amax", include_self=False)
