"""LVIS's files: image paths, lists of classes, frequencies, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frcnn.build import dataset
from frcnn.data import DetectionDataset, coco_json, lvis
from frcnn.errors import NoSplitError, UserError

Save = Callable[[Path, int, int], None]
CATEGORIES = [
    {"id": 9, "name": "okapi", "frequency": "r"},
    {"id": 4, "name": "cat", "frequency": "f"},
    {"id": 6, "name": "dog", "frequency": "c"},
]


def image(id: int, folder: str = "train2017", **more: Any) -> dict[str, Any]:
    """An entry as LVIS v1 has it, without a file name."""
    url = f"http://images.cocodataset.org/{folder}/{id:012d}.jpg"
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return {"id": id, "coco_url": url, "width": 40, "height": 30, **lists, **more}


class Folder:
    """Writes LVIS files and 40x30 images; an object of each pair (image, category)."""

    def __init__(self, root: Path, save: Save) -> None:
        self.root, self.save = root, save

    def write(
        self, split: str, images: list[dict], objects: list[tuple], categories: list = CATEGORIES
    ) -> None:
        for one in images:
            if isinstance(one.get("coco_url"), str):
                self.save(self.root / "/".join(one["coco_url"].split("/")[-2:]), 40, 30)
        annotations = [
            {"id": n, "image_id": i, "category_id": k, "bbox": [2 * n, 3, 10, 20], "area": 99}
            for n, (i, k) in enumerate(objects, 1)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (self.root / f"lvis_v1_{split}.json").write_text(json.dumps(content))

    def read(self, split: str = "train") -> DetectionDataset:
        return lvis(split, self.root)


@pytest.fixture
def folder(tmp_path: Path, save_image: Save) -> Folder:
    coco_json._categories_cache.clear()
    return Folder(tmp_path, save_image)


def lists(data: DetectionDataset) -> list[tuple[list[int], list[int]]]:
    """Of each image the labels of the classes that are absent, and not exhaustive."""
    rows = data.ground_truth()["images"]
    return [(row["neg_category_ids"], row["not_exhaustive_category_ids"]) for row in rows]


def test_files_are_found_by_url_and_lists_become_labels(folder: Folder) -> None:
    first = image(5, neg_category_ids=[9, 6], not_exhaustive_category_ids=[4])
    folder.write("train", [first, image(3)], [(5, 4), (3, 6)])
    # the validation images lie in both of COCO's folders
    val = [image(8, neg_category_ids=[4]), image(2, "val2017", not_exhaustive_category_ids=[9])]
    folder.write("val", val, [(2, 9)])
    data = folder.read("val")  # before the training file was read
    assert data.files.tolist() == ["train2017/000000000008.jpg", "val2017/000000000002.jpg"]
    assert data.class_names == ["cat", "dog", "okapi"] and data.category_ids == [4, 6, 9]
    assert data[0][0].shape == (3, 30, 40)
    assert lists(data) == [([1], []), ([], [3])]
    groups = [row["frequency"] for row in data.ground_truth()["categories"]]
    assert groups == ["f", "c", "r"]
    train = folder.read()
    assert lists(train) == [([2, 3], [1]), ([], [])] and train.labels.tolist() == [1, 2]
    with pytest.raises(NoSplitError):
        folder.read("test")


def test_the_annotations_may_lie_in_their_own_folder_and_the_images_elsewhere(
    folder: Folder, tmp_path: Path
) -> None:
    folder.write("train", [image(5)], [(5, 4)])
    own = tmp_path / "own/annotations"
    own.mkdir(parents=True)
    (tmp_path / "lvis_v1_train.json").rename(own / "lvis_v0.5_train.json")
    name = "lvis_v0.5_train.json"
    data = lvis("train", tmp_path / "own", images=tmp_path, train_annotations=name)
    assert data.load.path(0) == tmp_path / "train2017/000000000005.jpg"  # type: ignore[attr-defined]


def test_without_a_url_the_file_name_counts(folder: Folder, save_image: Save) -> None:
    one = image(5, file_name="a.jpg")
    del one["coco_url"]
    save_image(folder.root / "a.jpg", 40, 30)
    folder.write("train", [one], [(5, 4)])
    assert folder.read().files.tolist() == ["a.jpg"]


def test_images_that_are_dropped_take_their_lists_along(folder: Folder) -> None:
    images = [image(k, neg_category_ids=[k]) for k in (4, 6, 9)]
    folder.write("train", images, [(k, k) for k in (4, 6, 9)])
    (folder.root / "train2017/000000000006.jpg").unlink()
    data = folder.read()
    assert data.image_ids == [4, 9] and lists(data) == [([1], []), ([3], [])]
    data.keep(np.array([False, True]))
    assert data.image_ids == [9] and lists(data) == [([3], [])]


def test_folds_pool_the_lists(folder: Folder) -> None:
    ids = {"train": range(10, 16), "val": range(20, 24)}
    listed = {}
    for split, own in ids.items():
        rows = []
        for k in own:
            negative, partial = [[4, 6, 9][: k % 4], [9, 6][: k % 3]]
            row = image(k, neg_category_ids=negative, not_exhaustive_category_ids=partial)
            rows.append(row)
            labels = {4: 1, 6: 2, 9: 3}
            listed[k] = tuple(sorted(labels[c] for c in part) for part in (negative, partial))
        folder.write(split, rows, [(k, 4) for k in own])
    node = {"_target_": "frcnn.data.lvis", "_partial_": True, "root": str(folder.root)}
    for cut in ({"folds": 3, "fold": 1}, {"val_fraction": 0.5}):
        parts = [dataset(node | cut, split) for split in ("train", "val")]
        seen = [id for part in parts for id in part.image_ids]
        assert len(seen) == len(set(seen)) == (10 if "folds" in cut else 6)
        for part in parts:
            assert lists(part) == [listed[id] for id in part.image_ids]  # type: ignore[index]


def test_ids_of_no_category_are_counted(folder: Folder) -> None:
    odd = [4, 77, None, [4], {"id": 4}, "4", 4, float("nan")]
    folder.write("train", [image(5, neg_category_ids=odd)], [(5, 6)])
    data = folder.read()
    assert lists(data) == [([1], [])]
    assert "7 listed classes that are unknown or listed twice" in data.problems.summary()


@pytest.mark.parametrize(
    ("images", "categories", "says"),
    [
        ([image(5, neg_category_ids=None)], CATEGORIES, "image 5 has no list 'neg_category_ids'"),
        ([image(5, not_exhaustive_category_ids=3)], CATEGORIES, "data=coco"),
        ([image(5)], [*CATEGORIES[1:], {"id": 9, "name": "x"}], "category 9 has no 'frequency'"),
        ([image(5)], [*CATEGORIES[1:], CATEGORIES[0] | {"frequency": []}], "r, c or f"),
        ([image(5, coco_url=None)], CATEGORIES, "'file_name'"),
    ],
)
def test_other_files_are_refused(folder: Folder, images: list, categories: list, says: str) -> None:
    folder.write("train", images, [(5, 4)], categories)
    with pytest.raises(UserError, match=says) as error:
        folder.read()
    assert "lvis_v1_train.json" in str(error.value) and "\n" not in str(error.value)


def test_the_validation_file_has_no_other_categories(folder: Folder) -> None:
    folder.write("train", [image(5)], [(5, 4)])
    folder.write("val", [image(6)], [], [CATEGORIES[0] | {"name": "giraffe"}])
    with pytest.raises(UserError, match="9: 'giraffe'"):
        folder.read("val")
    folder.write("val", [image(6)], [], CATEGORIES[:1])
    data = folder.read("val")
    assert data.class_names == ["cat", "dog", "okapi"]
    frequencies = [row["frequency"] for row in data.ground_truth()["categories"]]
    assert frequencies == [None, None, "r"]
