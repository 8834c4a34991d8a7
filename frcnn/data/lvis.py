"""Reader of LVIS (Gupta et al., arXiv 1908.03195): COCO's images with more than 1200 classes.

Its annotations are federated: an image is searched for some classes alone. The evaluation needs to
know for which (`frcnn.evaluation.federated`).
"""

from pathlib import Path
from typing import Any

import numpy as np

from frcnn.data.coco import dataset_of, refuse_other_categories, unique_classes
from frcnn.data.coco_json import CocoFile, Id, categories_of, columns_of, load_json
from frcnn.data.dataset import DetectionDataset
from frcnn.data.federated import NEGATIVE, NOT_EXHAUSTIVE, Federated
from frcnn.data.image_files import expand_home
from frcnn.data.problems import Problems
from frcnn.data.records import refuse_without_objects
from frcnn.errors import NoSplitError, UserError

FREQUENCIES = ("r", "c", "f")
Content = dict[str, list[dict]]


def lvis(
    split: str,
    root: str | Path,
    images: str | Path | None = None,
    train_annotations: str = "lvis_v1_train.json",
    val_annotations: str = "lvis_v1_val.json",
) -> DetectionDataset:
    """Read one split; labels 1..C follow the order of the category ids, as `coco` has them.

    Args:
        split: "train" or "val".
        root: folder of the annotation files, or of a folder `annotations` with them.
        images: folder of COCO's folders train2017 and val2017; None = `root`. The last two parts of
            an image's `coco_url` say where it is (the validation images are in both folders);
            `file_name` counts where there is no such URL.
        train_annotations, val_annotations: file names. v0.5 and v1 are read alike.

    Raises:
        NoSplitError: the split is "test", of which LVIS has no annotations.
        UserError: as `coco`; or an image lacks `neg_category_ids` or `not_exhaustive_category_ids`,
            or a category its `frequency`.
    """
    files = {"train": train_annotations, "val": val_annotations}
    if split not in files:
        raise NoSplitError("LVIS", split)
    root = expand_home(root)
    path, train = (_in_root(root, files[name]) for name in (split, "train"))
    file, content = _read(path)
    categories = file.categories
    if split != "train":
        categories = categories_of(train, lambda path: _read(path)[0])
        refuse_other_categories(file, path, categories)
    classes = unique_classes(categories)
    data = dataset_of(file, path, root if images is None else expand_home(images), classes)
    data.federated = _federated(path, content, data)
    if split == "train":
        refuse_without_objects(data.ignore, path, data.problems)
    return data


def _in_root(root: Path, name: str) -> Path:
    inside = root / "annotations" / name
    return inside if inside.is_file() else root / name


def _read(path: Path) -> tuple[CocoFile, Content]:
    content = load_json(path)
    for image in content["images"]:
        if isinstance(image.get("coco_url"), str):
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    return columns_of(path, content), content


def _federated(path: Path, content: Content, data: DetectionDataset) -> Federated:
    """The lists of the images that `data` kept."""
    index = {id: row for row, id in enumerate(data.image_ids)}
    labels: dict[Id, int] = {id: label for label, id in enumerate(data.category_ids, start=1)}
    pairs: dict[str, list[tuple[int, int]]] = {NEGATIVE: [], NOT_EXHAUSTIVE: []}
    for image in content["images"]:
        for key, found in pairs.items():
            listed = _listed(path, image, key)
            if image["id"] in index:
                known = _labels(listed, labels, data.problems, f"{key} of image {image['id']}")
                found += [(index[image["id"]], label) for label in known]
    negative, not_exhaustive = (
        np.array(found, dtype=np.int64).reshape(-1, 2) for found in pairs.values()
    )
    groups = {entry["id"]: _frequency(path, entry) for entry in content["categories"]}
    frequency = [groups.get(id) for id in data.category_ids]
    return Federated(negative, not_exhaustive, frequency)


def _labels(listed: list, labels: dict[Id, int], problems: Problems, where: str) -> list[int]:
    """The labels of the ids, each once; ids of no category are dropped and counted."""
    ids = {id for id in listed if isinstance(id, int | float | str)}
    known = sorted(labels[id] for id in ids if id in labels)  # type: ignore[index]
    for _ in range(len(known), len(listed)):
        problems.add("listed classes that are unknown or listed twice", where, dropped=True)
    return known


def _listed(path: Path, image: dict[str, Any], key: str) -> list:
    if not isinstance(image.get(key), list):
        raise UserError(
            f"{path}: image {image['id']!r} has no list {key!r}, so this is no LVIS file; "
            "read COCO annotations with data=coco"
        )
    return image[key]


def _frequency(path: Path, category: dict[str, Any]) -> str:
    if category.get("frequency") not in FREQUENCIES:
        raise UserError(f"{path}: category {category['id']!r} has no 'frequency' of r, c or f")
    return str(category["frequency"])
