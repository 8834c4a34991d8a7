"""Statistics of what a sampler picked, to plot and to compare between runs."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers import Candidates

IOU_EDGES = torch.linspace(0, 1, 21, dtype=torch.float64)
# Losses span decades. The edges are fixed, so that histograms of two runs can be overlaid.
LOSS_EDGES = torch.logspace(-4, 1, 31, dtype=torch.float64)

Histogram = tuple[list[int], list[float]]


@torch.no_grad()
def sampling_report(
    candidates: Candidates, weights: Tensor, loss: Tensor, *, num_images: int
) -> tuple[dict[str, float], dict[str, Histogram]]:
    """Summary numbers and histograms of one call of a sampler.

    Args:
        candidates: all candidates of a batch, N over its images.
        weights: [N] >= 0, what the sampler returned; 0 = not sampled.
        loss: [N] class + box loss of each candidate before weighting; 0 for ignored ones.
        num_images: images in the batch.

    Returns:
        Scalars by name, and histograms by name as (counts [B], edges [B + 1]). A mean without
        values has no entry. Values beyond the edges are counted in the outermost bins.

        ``positives_per_image``, ``negatives_per_image``: number of sampled candidates;
        ``candidates_positive_per_image``: number of positive candidates. ``positive_iou``,
        ``negative_iou``: mean IoU of the sampled. ``loss_picked``, ``loss_passed``: mean loss of
        the sampled and of the other candidates, without ignored ones. ``effective_sample_size``:
        (sum w)^2 / sum w^2 over the batch, divided by ``num_images``. ``hard_fraction``: share of
        the K sampled negatives whose loss is among the K highest of the batch's negatives; 1 if
        the hardest are sampled, about K / negatives for a random choice. ``objects_covered``:
        share of the objects with a positive candidate that have a sampled one.
    """
    ious, picked = candidates.ious, weights > 0
    positive, negative = candidates.positive, candidates.negative
    passed = (positive | negative) & ~picked
    losses = loss.float()  # half precision has too few digits for a mean over thousands
    scalars = {
        "positives_per_image": (positive & picked).sum().item() / num_images,
        "negatives_per_image": (negative & picked).sum().item() / num_images,
        "candidates_positive_per_image": positive.sum().item() / num_images,
        "effective_sample_size": _effective_size(weights) / num_images,
        **mean_entry("positive_iou", ious[positive & picked]),
        **mean_entry("negative_iou", ious[negative & picked]),
        **mean_entry("loss_picked", losses[picked]),
        **mean_entry("loss_passed", losses[passed]),
        **mean_entry("hard_fraction", _is_hard(losses[negative], picked[negative])),
        **mean_entry("objects_covered", _is_covered(candidates.gt, positive, picked)),
    }
    histograms = {
        "iou_positives": _histogram(ious[positive & picked], IOU_EDGES),
        "iou_negatives": _histogram(ious[negative & picked], IOU_EDGES),
        "loss_picked": _histogram(losses[picked], LOSS_EDGES),
        "loss_passed": _histogram(losses[passed], LOSS_EDGES),
    }
    return scalars, histograms


def mean_entry(name: str, values: Tensor) -> dict[str, float]:
    """The mean under its name; no entry without values."""
    return {name: values.float().mean().item()} if values.numel() else {}


def _effective_size(weights: Tensor) -> float:
    """How many equal weights would average as well: n for n equal ones, 0 for none."""
    w = weights.double()
    return (w.sum().square() / w.square().sum()).item() if bool(w.any()) else 0.0


def _is_hard(loss: Tensor, picked: Tensor) -> Tensor:
    """[K] whether the loss of each picked one is at least the K-th highest of ``loss`` [M]."""
    count = int(picked.sum())
    if count == 0:
        return loss[:0]
    return loss[picked] >= loss.topk(count).values[-1]


def _is_covered(gt: Tensor, positive: Tensor, picked: Tensor) -> Tensor:
    """[objects with a positive] whether one of their positives was picked."""
    return torch.isin(gt[positive].unique(), gt[positive & picked])


def _histogram(values: Tensor, edges: Tensor) -> Histogram:
    """Counts per bin. A bin includes its left edge; the last bin includes both edges."""
    inside = values.cpu().double().clamp(edges[0], edges[-1])
    counts = torch.histogram(inside, edges).hist
    return counts.long().tolist(), edges.tolist()
