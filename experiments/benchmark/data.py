"""The input pipeline against the step, and annotations of COCO's size."""

import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.benchmark import memory, setting
from experiments.benchmark.report import WHY, Row, table
from experiments.benchmark.training import Training
from frcnn import build as assemble
from frcnn.config.compose import build
from frcnn.data import AspectGroupedBatches, Batch, coco, make_loader
from frcnn.parallel.device import keep_freed_memory
from frcnn.training.loop import Window

# The numbers of COCO's train2017, and the seconds that they need.
IMAGES, BOXES, ENOUGH = 118_000, 860_000, 45
CLASSES, SIZE, POLYGONS = 80, (640, 480), 50
TRAINING, LOADING = 0.3, 0.1  # shares of the time
WORKERS = 2
TOUCHED = 500  # batches that workers read before their memory is measured


def measure(device: torch.device, seconds: float, root: Path | None = None) -> dict[str, Any]:
    """Tables of waiting and of loading. ``root``: BCCD's folder; None: embedded images."""
    rows = [_waiting(device, seconds, root)]
    share = min(1.0, seconds / ENOUGH)
    return {
        "tables": [
            table("Waiting for data in training", rows),
            table("Loading COCO annotations (made up, with polygons)", [_annotations(share)]),
        ]
    }


def _config(root: Path | None) -> tuple[str, dict[str, Any]]:
    """The name of the data, and a configuration that loads them."""
    if root is None:
        config = setting.compose(*setting.ON_CPU.overrides(), "data.train_images=200")
        return "shapes at 256x192", config
    return "BCCD (experiment=bccd)", setting.compose("experiment=bccd", f"data.root={root}")


def default_root() -> Path | None:
    """The folder that conf/data/bccd.yaml names, if it exists."""
    root = Path(setting.compose("experiment=bccd")["data"]["root"])
    return root if root.is_dir() else None


def _waiting(device: torch.device, seconds: float, root: Path | None) -> Row:
    name, config = _config(root)
    images = assemble.dataset(config["data"], "train")
    images.transform, images.seed = build(config["augmentation"]), config["seed"]
    trainer = config["trainer"]
    batches = AspectGroupedBatches(images.aspect_ratios(), trainer["batch_size"], config["seed"])
    loader = make_loader(images, batches, trainer["workers"])
    if device.type == "cpu":
        keep_freed_memory()
    training = Training(setting.ours(config, images.num_classes, device), config, device)
    precision = "bf16" if setting.computes_bf16(device) else "fp32"
    stream = _endless(loader, batches)
    window = _trained(training, stream, precision, seconds * TRAINING)
    record = window.record()
    return {
        "data": name,
        "share of time waiting, %": 100 * record["train/data_wait"],
        "images/s in training": record["train/images_per_second"],
        "images/s of the loader alone": _rate(stream, seconds * LOADING),
        "workers": trainer["workers"],
        "steps": len(window.terms),
        "precision": precision,
    }


def _endless(loader: torch.utils.data.DataLoader, batches: AspectGroupedBatches) -> Iterator[Batch]:
    for epoch in itertools.count():
        batches.set_position(epoch)
        yield from loader


def _trained(training: Training, stream: Iterator[Batch], precision: str, seconds: float) -> Window:
    """The engine's own measurement of waiting, over the steps after the first."""
    training.step(next(stream), precision)
    window, end = Window([]), time.perf_counter() + seconds
    while not window.terms or time.perf_counter() < end:
        batch = next(stream)
        window.loaded()
        window.add(training.step(batch, precision), len(batch[0]))
    return window


def _rate(stream: Iterator[Batch], seconds: float) -> float:
    """Images per second without training; batches that were loaded ahead do not count."""
    for _ in range(8):
        next(stream)
    images, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not images:
        images += len(next(stream)[0])
    return images / took


def _annotations(share: float) -> Row:
    count, boxes = int(share * IMAGES), int(share * BOXES)
    row: Row = {"annotations": f"{count:,} images, {boxes:,} boxes"}
    if not memory.can_measure():
        return row | {WHY: memory.NO_PROC}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "annotations.json"
        write_coco(file, folder, count, boxes)
        row["MB of JSON"] = round(file.stat().st_size / memory.MB)
        return row | memory.in_child(_load, file)


def write_coco(file: Path, folder: Path, images: int, boxes: int) -> None:
    """Write a COCO file of random boxes, and an empty file per image: loading opens none."""
    rng = np.random.default_rng(0)
    for number in range(images):
        (folder / f"{number:012d}.jpg").touch()
    polygons = [_polygon(rng) for _ in range(POLYGONS)]
    owner = rng.integers(images, size=boxes).tolist()
    category = rng.integers(1, CLASSES + 1, size=boxes).tolist()
    corners = rng.uniform(0, 300, size=(boxes, 2)).round(2)
    sides = rng.uniform(5, 150, size=(boxes, 2)).round(2)
    place = np.concatenate([corners, sides], axis=1).tolist()
    areas = sides.prod(axis=1).round(2).tolist()
    columns = zip(owner, category, place, areas, itertools.cycle(polygons))
    with file.open("w") as out:
        out.write('{"images": [')
        out.write(", ".join(f'{{"id": {n}, "file_name": "{n:012d}.jpg", "width": {SIZE[0]}, '
                            f'"height": {SIZE[1]}}}' for n in range(images)))  # fmt: skip
        out.write('], "annotations": [')
        for number, (image, label, box, area, polygon) in enumerate(columns, start=1):
            comma = ", " if number > 1 else ""
            out.write(f'{comma}{{"segmentation": [{polygon}], "area": {area}, "iscrowd": 0, '
                      f'"image_id": {image}, "bbox": {box}, "category_id": {label}, '
                      f'"id": {number}}}')  # fmt: skip
        names = ", ".join(f'{{"id": {k}, "name": "class {k}"}}' for k in range(1, CLASSES + 1))
        out.write(f'], "categories": [{names}]}}\n')


def _polygon(rng: np.random.Generator) -> str:
    return str(rng.uniform(0, 400, size=rng.integers(10, 60)).round(2).tolist())


def _load(file: Path) -> Row:
    """Load in this process, then let two workers read; sums of PSS count shared pages once."""
    # The parent shares pages with this process, so both are counted.
    family = [os.getppid(), os.getpid()]
    base = memory.shared_out(family)
    found: list[Any] = []
    began = time.perf_counter()
    peak = memory.rise(lambda: found.append(coco("train", *[file.parent, file] * 2)))
    took = time.perf_counter() - began
    (images,) = found
    images.load = _Blank(images.widths, images.heights)
    order = np.random.default_rng(0).integers(len(images), size=(TOUCHED, 8)).tolist()
    alone = memory.shared_out(family)
    loader = iter(make_loader(images, order, WORKERS))
    for _ in range(TOUCHED - 2 * WORKERS):  # the workers load ahead, and are still running
        next(loader)
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    together = memory.shared_out([*family, *workers])
    return {
        "seconds": took,
        "peak memory, MB": round(peak / memory.MB),
        "held, MB": round((alone - base) / memory.MB),
        f"held with {WORKERS} workers, MB": round((together - base) / memory.MB),
    }


class _Blank:
    """index -> an image of the stated size that costs no memory: one value, expanded."""

    def __init__(self, widths: np.ndarray, heights: np.ndarray) -> None:
        self.widths, self.heights = widths, heights

    def __call__(self, index: int) -> Tensor:
        pixel = torch.zeros(3, 1, 1, dtype=torch.uint8)
        return pixel.expand(3, int(self.heights[index]), int(self.widths[index]))
