"""Run folders as training leaves them, without training: only what a report reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from frcnn.build import dataset
from frcnn.evaluation.coco import coco_metrics
from frcnn.evaluation.inference import save_detections

SHAPES = {
    "_target_": "frcnn.data.shapes",
    "_partial_": True,
    "min_size": 96,
    "train_images": 1,
    "width": 128,
    "height": 96,
}
CONFIG = {
    "sampler": {"rcnn": {"_target_": "samplers.random"}},
    "data": {"root": "data/bccd", "min_size": 192},
    "model": {"backbone_width": 1},
    "budget": {"rcnn": 64},
    "trainer": {"epochs": 2, "workers": 1, "clip_norm": 10.0},
    "optimizer": {"lr": 0.02},
}
MADE = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "torch": "2.9.0",
    "processor": "EPYC",
    "threads": 1,
    "gpu": None,
}
CHOICES = {
    "experiment": None,
    "sampler": "random",
    "sampler/rcnn": "random",
    "loss": "cross_entropy",
    "box_loss": "smooth_l1",
    "data": "bccd",
    "hydra/launcher": "basic",
}


def fabricate(
    folder: Path, *overrides: str, ap: float = 0.5, status: str = "COMPLETED", **summary: Any
) -> Path:
    """A run of two epochs, AP as a fraction; ``summary`` replaces what it says by default."""
    config, choices = json.loads(json.dumps(CONFIG)), dict(CHOICES)
    config |= {"seed": 0, "run_name": folder.name}
    for text in overrides:
        _set(config, choices, *text.split("=", 1))
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    runtime = {"hydra": {"runtime": {"choices": choices}}}
    (folder / ".hydra/hydra.yaml").write_text(yaml.safe_dump(runtime))
    error = "RuntimeError: out of\nmemory" if status == "FAILED" else None
    record = {"status": status, "overrides": list(overrides), "error": error}
    (folder / "status.json").write_text(json.dumps(record))
    (folder / "environment.json").write_text(json.dumps([MADE]))
    if status == "COMPLETED":
        _finish(folder, ap, {"seed": config["seed"], "choices": choices, **summary})
    return folder


def _set(config: dict[str, Any], choices: dict[str, Any], key: str, text: str) -> None:
    if key in choices:
        choices[key] = text
        if key == "sampler":
            choices["sampler/rcnn"] = text
            config["sampler"]["rcnn"]["_target_"] = f"samplers.{text}"
        return
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = yaml.safe_load(text)


def _finish(folder: Path, ap: float, more: Mapping[str, Any]) -> None:
    figures = {"AP": ap, "AP50": ap + 0.2, "AP75": ap + 0.1, "APs": None, "APm": ap, "APl": ap}
    classes = {name: {"AP": ap + d, "AP50": 0.9} for name, d in (("RBC", 0.1), ("WBC", -0.1))}
    summary = {**figures, "AR100": 0.6, "per_class": classes, "steps": 876, "seconds": 100.0}
    (folder / "summary.json").write_text(json.dumps(summary | dict(more)))
    records = [
        {"step": 1, "epoch": 1, "train/loss": 1.0, "train/loss_classifier": ap},
        {"step": 400, "epoch": 1, "train/loss": 0.5, "train/loss_classifier": ap / 2},
        {"step": 438, "epoch": 1, "val/AP": ap / 2},
        {"step": 876, "epoch": 2, "val/AP": ap},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def sweep(folder: Path, seeds: int = 3, **gains: float) -> Path:
    """Random sampling, and samplers with a known gain of AP, in percent; seeds differ by 1 AP."""
    for name, gain in {"random": 0.0, **gains}.items():
        for seed in range(seeds):
            # What a method adds differs a little from seed to seed, but for the baseline.
            own = 0.1 * (seed % 2) if gain else 0.0
            ap = 0.5 + seed / 100 + (gain + own) / 100
            run = folder / f"{name}_{seed}"
            measured = {"seconds": 100.0 + gain, "peak_memory_mb": 500.0 + 100 * seed}
            fabricate(run, f"sampler={name}", f"seed={seed}", ap=ap, **measured)
    return folder


def with_detections(run: Path, noise: float, seed: int, images: int = 12) -> Path:
    """Give a fabricated run detections of drawn shapes, and the figures that they have.

    Args:
        noise: of the boxes' corners, standard deviation in pixels; objects are 14 to 40 large.
    """
    config = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    config["data"] = {**SHAPES, "val_images": images}
    (run / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    data = dataset(config["data"], "val")
    truth, names = data.ground_truth(), data.class_names
    found = _found(truth, noise, np.random.default_rng(seed))
    save_detections(run / "detections.npz", found)
    summary = json.loads((run / "summary.json").read_text())
    summary |= coco_metrics(truth, found, names, "pycocotools")
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def _found(
    truth: Mapping[str, Any], noise: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """0 to 2 detections an object, a tenth of the wrong class, and two of nothing an image."""
    detections = []
    for image in range(len(truth["images"])):
        objects = [row for row in truth["annotations"] if row["image_id"] == image]
        objects = [row for row in objects for _ in range(rng.choice(3, p=[0.1, 0.8, 0.1]))]
        xywh = np.reshape([row["bbox"] for row in objects], (-1, 4))
        real = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
        real = real + rng.normal(0, noise, real.shape)
        corner = rng.uniform(0, 60, (2, 2))
        boxes = np.vstack([real, np.hstack([corner, corner + rng.uniform(14, 30, (2, 2))])])
        labels = np.array([row["category_id"] for row in objects] + [1, 2])
        labels = np.where(rng.random(len(labels)) < 0.1, labels % 3 + 1, labels)
        scores = np.append(rng.uniform(0.2, 1, len(real)), rng.uniform(0.05, 0.6, 2))
        arrays = {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)}
        tensors = {key: torch.from_numpy(a) for key, a in (arrays | {"labels": labels}).items()}
        detections.append({"image_id": image, **tensors})
    return detections


def seen_sweep(folder: Path, seeds: int = 2, images: int = 12, **noise: float) -> Path:
    """Runs with detections: random sampling is 4 pixels off, others as much as they say."""
    for name, own in {"random": 4.0, **noise}.items():
        for seed in range(seeds):
            run = fabricate(folder / f"{name}_{seed}", f"sampler={name}", f"seed={seed}")
            with_detections(run, own, seed, images)
    return folder
