"""Small data sets on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frcnn.data import DetectionDataset, coco, voc


def _save(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 128, np.uint8)).save(path)


def _xml(name: str, box: tuple, difficult: int = 0) -> str:
    sides = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{sides}</bndbox></object>"
    )


class VocFolder:
    """Writes a VOC folder of 40x30 images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "Annotations").mkdir(parents=True)
        (root / "JPEGImages").mkdir()
        (root / "ImageSets/Main").mkdir(parents=True)

    def add(
        self,
        split: str,
        id: str,
        *objects: tuple,
        size: str = "<size><width>40</width><height>30</height></size>",
        filename: str = "",
        image: str | None = "",
    ) -> None:
        """objects: (name, (xmin, ymin, xmax, ymax)[, difficult]); image: None = not written."""
        body = "".join(_xml(*entry) for entry in objects)
        text = f"<annotation><filename>{filename}</filename>{size}{body}</annotation>"
        (self.root / f"Annotations/{id}.xml").write_text(text)
        with open(self.root / f"ImageSets/Main/{split}.txt", "a") as file:
            file.write(f"{id}\n")
        if image is not None:
            _save(self.root / "JPEGImages" / (image or f"{id}.jpg"), 40, 30)

    def read(self, split: str = "train", **options) -> DetectionDataset:
        return voc(split, self.root, **options)


class CocoFolder:
    """Writes COCO files with 40x30 images, all in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[str, dict] = {}

    def write(
        self,
        split: str,
        annotations: list[dict],
        images: list[dict] | None = None,
        categories: list[dict] | None = None,
        files: bool = True,
    ) -> None:
        """Defaults: one image with id 7 and categories 3 "cat", 1 "dog"."""
        if images is None:
            images = [{"id": 7, "file_name": "seven.png", "width": 40, "height": 30}]
        if categories is None:
            categories = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}]
        for image in images if files else []:
            _save(self.root / image["file_name"], 40, 30)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (self.root / f"{split}.json").write_text(json.dumps(content))

    def read(self, split: str = "train") -> DetectionDataset:
        root = self.root
        return coco(split, root, root / "train.json", root, root / "val.json")


@pytest.fixture
def voc_folder(tmp_path: Path) -> VocFolder:
    return VocFolder(tmp_path / "voc")


@pytest.fixture
def coco_folder(tmp_path: Path) -> CocoFolder:
    (tmp_path / "coco").mkdir()
    return CocoFolder(tmp_path / "coco")


@pytest.fixture
def save_image() -> Callable[[Path, int, int], None]:
    return _save
