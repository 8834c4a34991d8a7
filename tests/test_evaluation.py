"""COCO metrics: worked by hand, equal in both back ends, sane at the edges."""

import contextlib
import copy
import io
import json
import logging
import sys

import numpy as np
import pytest
import torch

from frcnn.errors import ConfigError, UserError
from frcnn.evaluation.coco import (
    OVERALL,
    PER_CLASS,
    coco_metrics,
    coco_results,
    format_table,
    write_results,
)

NAMES = ["cell", "plate", "ghost"]  # the ground truth never has a ghost


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def backend(request):
    pytest.importorskip(request.param)
    return request.param


def ground_truth(objects, images):
    """COCO dict of ``(image, label, xywh)`` objects."""
    return {
        "images": [{"id": i, "width": 400, "height": 400} for i in range(images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": box[2] * box[3]}
            | {"iscrowd": 0}
            for n, (i, k, box) in enumerate(objects, 1)
        ],
    }


def detection(image, boxes, scores, labels):
    boxes, scores = torch.tensor(boxes).float(), torch.tensor(scores).float()
    return {"image_id": image, "boxes": boxes, "scores": scores, "labels": torch.tensor(labels)}


def hand_worked():
    """Objects A, B in image 0 and C in image 1; best first: A hit, a miss, C hit at IoU 0.72."""
    box = [10.0, 10.0, 10.0, 10.0]
    truth = ground_truth([(0, 1, box), (0, 1, [50.0, 50.0, 10.0, 10.0]), (1, 1, box)], images=3)
    found = [
        detection(0, [[10, 10, 20, 20]], [0.9], [1]),
        detection(1, [[80, 80, 90, 90], [10, 10, 20, 17.2]], [0.8, 0.7], [1, 1]),
    ]
    return truth, found


def random_set(images=60, seed=3):
    """Small to large boxes, crowds, images without objects, missed and false ones, tied scores."""
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(images):
        count = 0 if image % 7 == 0 else int(rng.integers(1, 9))
        xy, size = rng.uniform(0, 250, (count, 2)), np.exp(rng.uniform(2, 5, (count, 2)))
        labels = rng.integers(1, 3, count)
        boxes = np.hstack([xy, size])
        objects += [(image, int(k), b) for k, b in zip(labels, boxes.tolist(), strict=True)]
        copies = np.repeat(np.arange(count), rng.integers(0, 4, count))
        near = boxes[copies] + rng.normal(0, 0.05, (len(copies), 4)) * np.tile(size[copies], 2)
        false = np.hstack([rng.uniform(0, 250, (4, 2)), np.exp(rng.uniform(2, 5, (4, 2)))])
        xywh = np.vstack([near, false])
        found.append(
            {
                "image_id": image,
                "boxes": np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
                "scores": np.append(rng.integers(3, 10, len(near)), rng.integers(1, 7, 4)) / 10,
                "labels": np.concatenate([labels[copies], rng.integers(1, 3, 4)]),
            }
        )
    truth = ground_truth(objects, images)
    for annotation in truth["annotations"][::9]:
        annotation["iscrowd"] = 1
    return truth, found


def flat(metrics):
    figures = {key: metrics[key] for key in OVERALL}
    for name, values in metrics["per_class"].items():
        figures |= {f"{name}/{key}": value for key, value in values.items()}
    return figures


def test_average_precision_worked_by_hand(backend):
    truth, found = hand_worked()
    metrics = coco_metrics(truth, found, NAMES, backend)
    # 3 objects. IoU <= 0.70 (5 thresholds): hit, miss, hit -> precision 1 up to recall 1/3, then
    # 2/3 up to recall 2/3, then 0. Of the recalls 0.00..1.00, 34 are <= 1/3 and 33 more <= 2/3:
    # (34 + 33 * 2/3) / 101 = 56/101. IoU >= 0.75 (5 thresholds): hit, miss, miss -> 34/101.
    assert metrics["AP50"] == pytest.approx(56 / 101)
    assert metrics["AP75"] == pytest.approx(34 / 101)
    assert metrics["AP"] == metrics["APs"] == pytest.approx(45 / 101)
    assert metrics["AR100"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    # one detection an image: in image 1 that is the miss
    assert metrics["AR1"] == pytest.approx(1 / 3)
    assert metrics["APm"] is metrics["ARl"] is None
    of_all = {key: metrics[key] for key in ("AP", "AP50", "AP75")} | {"AR": metrics["AR100"]}
    own = metrics["per_class"]["cell"]
    assert {key: own[key] for key in of_all} == of_all and own.keys() == set(PER_CLASS)
    assert metrics["per_class"]["ghost"] == dict.fromkeys(PER_CLASS)


def test_both_back_ends_equal():
    pytest.importorskip("faster_coco_eval")
    truth, found = random_set()
    slow = flat(coco_metrics(truth, found, NAMES, "pycocotools"))
    fast = flat(coco_metrics(truth, found, NAMES, "faster_coco_eval"))
    assert fast == pytest.approx(slow, abs=1e-9)
    # neither trivially bad nor good at any size
    assert all(0.2 < slow[key] < 0.8 for key in ("AP", "APs", "APm", "APl", "AR10"))
    assert coco_metrics(truth, found, NAMES) == coco_metrics(
        truth, found, NAMES, "faster_coco_eval"
    )


def test_equals_pycocotools_own_summary(backend, tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = random_set(seed=4)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    index = COCO(tmp_path / "truth.json")
    reference = COCOeval(index, index.loadRes(coco_results(found)), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    metrics = coco_metrics(truth, found, NAMES, backend)
    assert [metrics[key] for key in OVERALL] == pytest.approx(reference.stats.tolist(), abs=1e-12)


def test_perfect_detections(backend):
    truth, _ = random_set()
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    found = []
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([a["category_id"] for a in mine], dtype=int)
        found.append(
            {"image_id": image["id"], "boxes": boxes, "scores": np.ones(len(mine))}
            | {"labels": labels}
        )
    metrics = coco_metrics(truth, found, NAMES, backend)
    for key in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "ARs", "ARm", "ARl"):
        assert metrics[key] == 1, key


def test_no_detections_are_zeros(backend):
    truth, _ = hand_worked()
    empty = {"image_id": 0, "boxes": torch.zeros(0), "scores": torch.zeros(0)}
    for found in ([], [empty | {"labels": torch.zeros(0, dtype=torch.int64)}]):
        metrics = coco_metrics(truth, found, NAMES, backend)
        assert metrics["AP"] == metrics["AP50"] == metrics["AR1"] == metrics["ARs"] == 0
        assert metrics["APl"] is None
        assert metrics["per_class"]["cell"] == dict.fromkeys(PER_CLASS, 0)


@pytest.mark.parametrize("images", [0, 2])
def test_no_ground_truth_is_none_and_valid_json(backend, images):
    found = [detection(0, [[10, 10, 20, 20]], [0.9], [1])] if images else []
    metrics = coco_metrics(ground_truth([], images), found, NAMES, backend)
    assert set(flat(metrics).values()) == {None}
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_incomplete_ground_truth_is_completed_and_left_alone(backend):
    """Annotation ids 0 and twice the same, no area, no iscrowd: nothing changes."""
    truth, found = hand_worked()
    expected = coco_metrics(truth, found, NAMES, backend)
    for annotation in truth["annotations"]:
        annotation["id"] = 0
        del annotation["area"], annotation["iscrowd"]
    for image in truth["images"]:
        image["id"] = np.int64(image["id"])
    before = copy.deepcopy(truth)
    assert coco_metrics(truth, found, NAMES, backend) == expected
    assert truth == before
    assert all(type(image["id"]) is np.int64 for image in truth["images"])


def test_own_area_decides_the_size(backend):
    """COCO's area is that of the mask: a box of 100 pixels can be a medium object and reverse."""
    truth, found = hand_worked()
    for annotation in truth["annotations"]:
        annotation["area"] = 5000.0
    metrics = coco_metrics(truth, found, NAMES, backend)
    assert metrics["APs"] is None and metrics["ARm"] == pytest.approx(0.5)


def test_second_detection_of_an_object_is_a_miss(backend):
    """Also of the very first one: the evaluators take detection id 0 for "not matched"."""
    box, other = [10.0, 10.0, 10.0, 10.0], [50.0, 50.0, 10.0, 10.0]
    found = [detection(0, [[10, 10, 20, 20], [10, 10, 20, 20]], [0.9, 0.8], [1, 1])]
    metrics = coco_metrics(ground_truth([(0, 1, box), (0, 1, other)], 1), found, NAMES, backend)
    # one of two objects: precision 1 at the 51 recalls up to 0.50
    assert metrics["AP"] == pytest.approx(51 / 101) and metrics["AR100"] == 0.5


@pytest.mark.parametrize(
    ("false", "limit", "hits"), [(3, 2, 0), (3, 4, 1), (3, 5, 2), (150, 100, 0), (150, 300, 2)]
)
def test_limit_of_detections(backend, false, limit, hits):
    """False detections score above the two true ones of image 0; there are three objects."""
    truth, _ = hand_worked()
    boxes = [[200, 200, 210, 210]] * false + [[10, 10, 20, 20], [50, 50, 60, 60]]
    found = [detection(0, boxes, [0.9] * false + [0.5, 0.4], [1] * (false + 2))]
    metrics = coco_metrics(truth, found, NAMES, backend, max_detections=limit)
    assert metrics["AR100"] == metrics["ARs"] == pytest.approx(hits / 3)
    assert (metrics["AP"] > 0) == (hits > 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_detections_are_left_out_with_one_warning(backend, caplog, bad):
    truth, found = hand_worked()
    expected = coco_metrics(truth, found, NAMES, backend)
    broken = [
        detection(0, [[10, 10, 20, 20], [1, 2, bad, 4]], [0.9, 0.95], [1, 1]),
        detection(1, found[1]["boxes"].tolist() + [[1, 2, 3, 4]], [0.8, 0.7, bad], [1, 1, 1]),
    ]
    with caplog.at_level(logging.WARNING):
        assert coco_metrics(truth, broken, NAMES, backend) == expected
    assert [r.getMessage() for r in caplog.records] == [
        "left out 2 detections with a NaN or infinite box or score (first: image id 0)"
    ]


def test_image_evaluated_twice_counts_once(backend):
    truth, found = hand_worked()
    assert coco_metrics(truth, found + found, NAMES, backend) == coco_metrics(
        truth, found, NAMES, backend
    )


def test_unknown_image_or_label_is_refused():
    truth, _ = hand_worked()
    with pytest.raises(UserError, match="image id 7"):
        coco_metrics(truth, [detection(7, [[1, 2, 3, 4]], [0.5], [1])], NAMES)
    for label in (0, 4):
        with pytest.raises(UserError, match=f"label {label}"):
            coco_metrics(truth, [detection(1, [[1, 2, 3, 4]], [0.5], [label])], NAMES)


def test_silent(backend, capfd, caplog):
    with caplog.at_level(logging.INFO):
        coco_metrics(*hand_worked(), NAMES, backend)
    assert capfd.readouterr() == ("", "") and caplog.records == []


def test_back_end_unknown_or_not_installed(monkeypatch):
    truth, found = hand_worked()
    with pytest.raises(ConfigError, match="lvis"):
        coco_metrics(truth, found, NAMES, "lvis")
    expected = coco_metrics(truth, found, NAMES, "pycocotools")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert coco_metrics(truth, found, NAMES, "auto") == expected
    with pytest.raises(UserError, match="pip install faster-coco-eval"):
        coco_metrics(truth, found, NAMES, "faster_coco_eval")


def test_results_keep_numbers_of_any_precision():
    found = detection(2, [[0.1, 0.2, 1.3, 2.4]], [0.123456789], [2])
    (row,) = coco_results([found])
    # float32 values, subtracted in float64, no rounding
    box = found["boxes"][0].double()
    assert row == {
        "image_id": 2,
        "category_id": 2,
        "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
        "score": found["scores"].double().item(),
    }
    half = found | {"scores": torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)}
    assert coco_results([half])[0]["score"] == 0.5


IDS = [
    ([7, 4], [18, 44, 5], [7, 4], [18, 44, 5]),
    (["a.jpg", "b.jpg"], ["cell", 3, "dog"], [1, 2], [1, 2, 3]),
]


@pytest.mark.parametrize(("images", "labels", "image_numbers", "label_numbers"), IDS)
def test_results_and_truth_have_the_same_numbers(
    tmp_path, images, labels, image_numbers, label_numbers
):
    truth = ground_truth([(0, 1, [1, 2, 3, 4])], images=2)
    found = [detection(1, [[1, 2, 4, 6], [0, 0, 1, 1]], [0.5, 0.25], [2, 1])]
    write_results(tmp_path, found, truth, images, labels)
    image, (first, second, *_) = image_numbers[1], label_numbers
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"image_id": image, "category_id": second, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": image, "category_id": first, "bbox": [0, 0, 1, 1], "score": 0.25},
    ]
    written = json.loads((tmp_path / "ground_truth.json").read_text())
    assert [row["id"] for row in written["images"]] == image_numbers
    assert [row["id"] for row in written["categories"]] == label_numbers[: len(NAMES)]
    (annotation,) = written["annotations"]
    assert (annotation["image_id"], annotation["category_id"]) == (image_numbers[0], first)
    for wrong, label, message in ((2, 1, "image id 2"), (-1, 1, "image id -1"), (0, 0, "label 0")):
        with pytest.raises(UserError, match=message):
            write_results(
                tmp_path, [detection(wrong, [[1, 2, 4, 6]], [0.5], [label])], truth, images, labels
            )


def test_plain_pycocotools_scores_the_written_files(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = random_set(seed=2)
    count = len(truth["images"])
    order = np.random.default_rng(0).permutation(count) + 100
    write_results(tmp_path, found, truth, order.tolist(), list(range(1, len(NAMES) + 1)))
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(tmp_path / "ground_truth.json")
        reference = COCOeval(index, index.loadRes(str(tmp_path / "results.json")), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    metrics = coco_metrics(truth, found, NAMES, "pycocotools")
    assert [metrics[key] for key in OVERALL] == pytest.approx(reference.stats.tolist(), abs=1e-12)


def test_tied_scores_do_not_depend_on_the_order_of_images(backend):
    """Two full-size boxes of one score, one of them an object."""
    results = []
    for order in ((0, 1), (1, 0)):
        images = [{"id": n, "file_name": f"{k}.jpg"} for n, k in enumerate(order)]
        truth = ground_truth([(order.index(0), 1, [0, 0, 50, 50])], 2) | {"images": images}
        found = [detection(n, [[0, 0, 50, 50]], [0.5], [1]) for n in range(2)]
        results.append(coco_metrics(truth, found, NAMES, backend)["AP"])
    assert results[0] == results[1]
    truth, found = random_set(seed=3)
    expected = coco_metrics(truth, found, NAMES, backend)
    count = len(truth["images"])
    turned = {image["id"]: count - 1 - image["id"] for image in truth["images"]}
    other = {
        "images": [image | {"id": turned[image["id"]]} for image in truth["images"]],
        "annotations": [a | {"image_id": turned[a["image_id"]]} for a in truth["annotations"]],
    }
    again = [one | {"image_id": turned[one["image_id"]]} for one in found]
    assert flat(coco_metrics(truth | other, again, NAMES, backend)) == pytest.approx(
        flat(expected), abs=1e-12
    )


def test_table():
    metrics = dict.fromkeys(OVERALL, 0.5) | {"AP": 0.4321, "APl": None}
    own = dict.fromkeys(PER_CLASS, 0.0) | {"AP": 1.0, "AR": 0.25}
    classes = {"cell": own, "ghost": dict.fromkeys(PER_CLASS), "long " * 20: own}
    assert format_table(metrics | {"per_class": classes}).splitlines() == [
        f"{'':30}    AP  AP50  AP75   APs   APm   APl   AR1  AR10 AR100   ARs   ARm   ARl",
        f"{'all':30}  43.2  50.0  50.0  50.0  50.0     –  50.0  50.0  50.0  50.0  50.0  50.0",
        "",
        f"{'':30}    AP  AP50  AP75  AP90    AR",
        f"{'cell':30} 100.0   0.0   0.0   0.0  25.0",
        f"{'ghost':30}     –     –     –     –     –",
        f"{'long ' * 5}lo... 100.0   0.0   0.0   0.0  25.0",
    ]
    many = {f"class {number}": own for number in range(1230)}
    *rows, last = format_table(metrics | {"per_class": many}).splitlines()
    assert len(rows) < 50 and last == f"({1230 - len(rows) + 4} more classes)"
