"""Twenty drawn images in LVIS's format: trained two steps, evaluated, and the files read again."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SMALL, call, small_network

from experiments import table
from experiments.report.detections import evaluator_of
from experiments.report.errors import costs
from experiments.report.matches import average_precision, match
from frcnn import check_data, evaluate, train
from frcnn.data import lvis, shapes
from frcnn.evaluation.coco import coco_metrics
from frcnn.evaluation.inference import load_detections

LINE = [text for text in SMALL if not text.startswith("data.") or text.startswith("data.m")]
FIGURES = ["APr", "APc", "APf", "AP_fixed", "APr_fixed", "APc_fixed", "APf_fixed"]
GROUPS = "rcf"


def write_lvis(root: Path) -> None:
    """Drawn shapes of 6 classes, 12 images for training and 8 for validation.

    A class that an image lacks is listed as absent there in half of the images; every fifth image
    is not exhaustive in one of its classes. Category ids are 10 and up.
    """
    for split, count in (("train", 12), ("val", 8)):
        data = shapes(split, train_images=12, val_images=8, width=64, height=48, num_classes=6,
                      num_objects=(1, 4))  # fmt: skip
        truth, images = data.ground_truth(), []
        for row in range(count):
            # LVIS's validation images lie in both folders
            folder = "val2017" if split == "val" and row % 2 else "train2017"
            path = root / folder / f"{split}{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data[row][0].permute(1, 2, 0).numpy()).save(path)
            shown = {a["category_id"] for a in truth["annotations"] if a["image_id"] == row}
            absent = [k + 9 for k in range(1, 7) if k not in shown and (k + row) % 2]
            images.append(
                {"id": row + 1, "coco_url": f"http://x/{folder}/{path.name}", "width": 64}
                | {"height": 48, "neg_category_ids": absent}
                | {"not_exhaustive_category_ids": [min(shown) + 9] if row % 5 == 0 else []}
            )
        for one in truth["annotations"]:
            one |= {"image_id": one["image_id"] + 1, "category_id": one["category_id"] + 9}
        categories = [
            {"id": k["id"] + 9, "name": k["name"], "frequency": GROUPS[k["id"] % 3]}
            for k in truth["categories"]
        ]
        content = {"images": images, "annotations": truth["annotations"], "categories": categories}
        (root / f"lvis_v1_{split}.json").write_text(json.dumps(content))


def test_twenty_images_are_trained_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lvis(tmp_path / "lvis")
    monkeypatch.chdir(tmp_path)
    data, run = ["data=lvis", "data.root=lvis"], tmp_path / "run"
    line = [*LINE, "trainer.max_steps=2", "model.box_score_thresh=0.001"]
    with small_network():
        assert call(check_data.main, *data) == 0
        assert call(train.main, *data, *line, f"hydra.run.dir={run}") == 0
        summary = json.loads((run / "summary.json").read_text())
        path = f"checkpoint={run}/checkpoints/last.pt"
        assert call(evaluate.main, path, "output=out", "workers=0", "device=cpu") == 0
        evaluator = evaluator_of(run)
        assert average_precision(match(evaluator)) == pytest.approx(summary["AP"], abs=1e-9)
        assert max(costs(evaluator).values()) > 0
        (tmp_path / "lvis").rename(tmp_path / "moved")
        moved = [path, "data_root=moved", "output=again", "workers=0", "device=cpu"]
        assert call(evaluate.main, *moved) == 0
    found, again = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("out", "again")
    )
    assert summary["steps"] == 2 and summary["AP"] > 0 and found == again
    assert all(np.isfinite(found[key]) for key in FIGURES)
    for key in ("AP", *FIGURES):
        assert found[key] == pytest.approx(summary[key]), key
    assert {"APr", "APc", "APf", "AP_fixed"} <= table.row(run).keys()
    val = lvis("val", tmp_path / "moved")
    detections = load_detections(run / "detections.npz")
    own = coco_metrics(val.ground_truth(), detections, val.class_names, "pycocotools")
    assert own["per_class"] == summary["per_class"]
    written = json.loads((tmp_path / "out/ground_truth.json").read_text())
    source = json.loads((tmp_path / "moved/lvis_v1_val.json").read_text())
    for key in ("id", "neg_category_ids", "not_exhaustive_category_ids"):
        assert [row[key] for row in written["images"]] == [row[key] for row in source["images"]]
    assert written["categories"] == source["categories"]
