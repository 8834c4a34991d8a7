"""How well scores serve classification and detection, worked by hand on six boxes."""

import pytest
import torch
from torch import Tensor

from frcnn.losses.activation import sigmoid_scores, softmax_scores
from frcnn.tracking.predictions import best_is_best, paired_ious, prediction_report, spearman
from samplers import Candidates, Prediction

# Three positives of class 1 on object 0, one of class 2 on object 1, two negatives, one ignored.
LABELS = torch.tensor([1, 1, -1, 1, 2, 0, 0])
GT = torch.tensor([0, 0, 0, 0, 1, 0, 1])
OBJECTS = torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 30, 30]])
ROWS = torch.tensor([0, 1, 3, 4, 5, 6])
# IoU of the first four with their objects: 0.8, 0.6, 0.4 and 1; a negative's does not matter.
BOXES = torch.tensor(
    [[0.0, 0, 10, 8], [0, 0, 6, 10], [0, 0, 4, 10], [20, 20, 30, 30], [0, 0, 9, 9], [0, 0, 1, 1]]
)
# Logits of background and both classes. Labels lead in rows 0, 4 and 5 of the candidates.
LOGITS = torch.tensor(
    [[0.0, 2, 0], [0, 1, 3], [0, -1, -2], [0, -5, 1], [1, 0, -1], [0, 0, 4]], dtype=torch.float32
)


def report(weights: list[float], shown: Tensor = LOGITS, sigmoid: bool = False) -> dict[str, float]:
    candidates = Candidates(
        boxes=torch.zeros(7, 4), labels=LABELS, ious=torch.zeros(7), gt=GT, gt_boxes=OBJECTS,
        image=torch.zeros(7, dtype=torch.int64), predict=lambda rows: prediction,
    )  # fmt: skip
    activation = sigmoid_scores if sigmoid else softmax_scores
    prediction = Prediction(shown, BOXES, torch.zeros(6), activation=activation)
    return prediction_report(candidates, torch.tensor(weights), ROWS, prediction)


def test_scalars_by_hand() -> None:
    # Scores of the labels: .79, .11, .24 and .73; ranks 4, 1, 2, 3 beside IoU ranks 3, 2, 1, 4:
    # 1 - 6 (1 + 1 + 1 + 1) / (4 * 15). The best of object 0 is first in both; object 1 has one box.
    assert report([1.0] * 7) == pytest.approx(
        {
            "accuracy_positive": 2 / 4,
            "accuracy_negative": 1 / 2,
            "score_iou_correlation": 1 - 6 * 4 / 60,
            "best_is_best": 1,
        }
    )


def test_only_samples_count_for_the_accuracy() -> None:
    found = report([0.0, 0.5, 1.0, 0.0, 2.0, 0.0, 0.0])
    assert found["accuracy_positive"] == 1 / 2 and "accuracy_negative" not in found
    assert found["score_iou_correlation"] == pytest.approx(0.6)


def test_a_sigmoid_site_says_background_where_no_class_is_above_a_half() -> None:
    # Column 0 is not read. Softmax would be wrong here, and both are wrong in the last row.
    shown = LOGITS.clone()
    shown[4] = torch.tensor([-9.0, -1, -1])
    assert report([1.0] * 7, shown, sigmoid=True)["accuracy_negative"] == 1 / 2


def test_a_batch_of_background_has_no_numbers_of_positives() -> None:
    candidates = Candidates(
        boxes=torch.zeros(2, 4), labels=torch.zeros(2, dtype=torch.int64), ious=torch.zeros(2),
        gt=torch.full((2,), -1), gt_boxes=torch.zeros(0, 4),
        image=torch.zeros(2, dtype=torch.int64), predict=lambda rows: prediction,
    )  # fmt: skip
    prediction = Prediction(LOGITS[4:], BOXES[4:], torch.zeros(2))
    found = prediction_report(candidates, torch.ones(2), torch.arange(2), prediction)
    assert found == {"accuracy_negative": 1 / 2}


def test_ranks_of_ties_are_shared_and_a_constant_has_no_correlation() -> None:
    a, b = torch.tensor([1.0, 2, 2, 3]), torch.tensor([10.0, 30, 20, 40])
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: their covariance 4.5 over sqrt(4.5 * 5).
    assert spearman(a, b).item() == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman(a, -(a**3)).item() == pytest.approx(-1)
    assert len(spearman(a, torch.ones(4))) == len(spearman(a[:0], a[:0])) == 0


def test_the_best_scored_box_of_an_object() -> None:
    gt = torch.tensor([5, 7, 5, 7, 8])
    score, iou = torch.tensor([0.9, 0.2, 0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])
    # Object 5's best-scored box is its worst, 7's scores are equal, 8 has one box.
    assert best_is_best(gt, score, iou).tolist() == [False, True]


def test_ious_of_pairs_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3]])
    others = torch.tensor([[1.0, 0, 3, 2], [2, 2, 3, 3], [3, 3, 3, 3]])
    assert paired_ious(boxes, others).tolist() == pytest.approx([1 / 3, 0, 0])
