"""Every number of the report worked by hand on one batch of two images, eleven candidates."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from frcnn.tracking.sampling import sampling_report
from samplers import Candidates

# Image 0 holds objects 0 and 1, image 1 object 2. Rows 0..4 are positives, 5..9 background
# (9 does not overlap anything), 10 is ignored.
LABELS = [1, 1, 2, 1, 1, 0, 0, 0, 0, 0, -1]
IOUS = [0.9, 0.6, 0.7, 0.8, 0.5, 0.3, 0.1, 0.0, 0.4, 0.0, 0.45]
GT = [0, 0, 1, 2, 2, 0, 1, 0, 2, 2, 1]
IMAGE = [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0]
LOSS = [1.0, 2.0, 3.0, 4.0, 5.0, 0.1, 0.2, 0.3, 0.4, 0.5, 9.0]
# Object 0 by row 1, object 2 by row 3, object 1 only by background
# that overlaps it; negatives 6, 8 and 9.
WEIGHTS = [0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def candidates(labels: list[int] = LABELS) -> Candidates:
    """The batch above; its boxes do not matter, and the report must not run the network."""

    def predict(rows: Tensor) -> Any:
        raise AssertionError("the report is given the loss")

    return Candidates(
        boxes=torch.zeros(len(labels), 4),
        labels=torch.tensor(labels),
        ious=torch.tensor(IOUS),
        gt=torch.tensor(GT),
        gt_boxes=torch.zeros(3, 4),
        image=torch.tensor(IMAGE),
        predict=predict,
    )


def report(weights: list[float] = WEIGHTS, labels: list[int] = LABELS) -> tuple[Any, Any]:
    return sampling_report(
        candidates(labels), torch.tensor(weights), torch.tensor(LOSS), num_images=2
    )


def test_scalars_worked_by_hand() -> None:
    scalars, _ = report()
    assert scalars == pytest.approx(
        {
            "positives_per_image": 2 / 2,
            "negatives_per_image": 3 / 2,
            "candidates_positive_per_image": 5 / 2,
            "positive_iou": (0.6 + 0.8) / 2,
            "negative_iou": (0.1 + 0.4 + 0.0) / 3,
            "loss_picked": (2 + 4 + 0.2 + 0.4 + 0.5) / 5,
            "loss_passed": (1 + 3 + 5 + 0.1 + 0.3) / 5,
            # (1 + 2 + 1 + 1 + 1)^2 / (1 + 4 + 1 + 1 + 1) over two images
            "effective_sample_size": 36 / 8 / 2,
            # The three highest of the negatives are 0.5, 0.4 and 0.3; picked 0.5, 0.4 and 0.2.
            "hard_fraction": 2 / 3,
            "objects_covered": 2 / 3,
        },
        rel=1e-6,
    )


def test_equal_weights_count_fully_whatever_their_size() -> None:
    scalars, _ = report([0.25 * (w > 0) for w in WEIGHTS])
    assert scalars["effective_sample_size"] == pytest.approx(5 / 2)


def test_the_hardest_negatives_are_all_hard_and_the_easiest_none() -> None:
    hardest, _ = report([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0])
    easiest, _ = report([0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0])
    assert (hardest["hard_fraction"], easiest["hard_fraction"]) == (1, 0)


def test_an_object_without_a_positive_candidate_is_nobodys_fault() -> None:
    """Object 1 loses its one positive, row 2, to the ignored: two objects left, both covered."""
    labels = [-1 if row == 2 else label for row, label in enumerate(LABELS)]
    scalars, _ = report(labels=labels)
    assert scalars["objects_covered"] == 1


def test_means_over_nothing_are_left_out() -> None:
    scalars, histograms = report([0.0] * 11)
    counts = ("positives_per_image", "negatives_per_image", "effective_sample_size")
    assert [scalars[name] for name in counts] == [0, 0, 0]
    assert set(scalars) - set(counts) == {
        "candidates_positive_per_image",
        "loss_passed",
        "objects_covered",
    }
    assert scalars["objects_covered"] == 0
    assert sum(histograms["iou_negatives"][0]) == 0
    everything, _ = report([1.0] * 10 + [0.0])
    assert "loss_passed" not in everything
    background, _ = report(labels=[0] * 11)
    assert "objects_covered" not in background and "positive_iou" not in background


def test_iou_histograms_count_into_twenty_bins() -> None:
    _, histograms = report()
    counts, edges = histograms["iou_negatives"]
    assert edges == pytest.approx([k / 20 for k in range(21)])
    assert len(counts) == 20 and sum(counts) == 3
    assert counts[0] == 1  # IoU 0
    assert sum(histograms["iou_positives"][0][10:]) == 2


def test_loss_histograms_span_five_decades_and_keep_what_lies_beyond() -> None:
    batch = candidates()
    loss = torch.tensor([0.0, 1e-6, 5e-4, 0.05, 5.0, 100.0, 0.0, 0.0, 0.0, 0.0, 50.0])
    _, histograms = sampling_report(
        batch, torch.tensor([1.0] * 6 + [0.0] * 5), loss.bfloat16(), num_images=2
    )
    counts, edges = histograms["loss_picked"]
    assert [math.log10(edge) for edge in edges[::6]] == pytest.approx([-4, -3, -2, -1, 0, 1])
    # Six bins a decade: 0 and 1e-6 in the first bin, 5 and 100 in the last decade.
    decades = [sum(counts[k : k + 6]) for k in range(0, 30, 6)]
    assert (counts[0], decades, counts[-1]) == (2, [3, 0, 1, 0, 2], 1)
    assert sum(histograms["loss_passed"][0]) == 4  # without the ignored one
