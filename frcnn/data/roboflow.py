"""Exports of Roboflow in COCO's format: a folder per split, with images and annotations."""

from collections.abc import Sequence
from pathlib import Path

from frcnn.data.coco import dataset_of
from frcnn.data.coco_json import CocoFile, Id, read_json
from frcnn.data.dataset import DetectionDataset
from frcnn.data.image_files import expand_home
from frcnn.data.records import Classes, refuse_without_objects
from frcnn.errors import ConfigError, NoSplitError

ANNOTATIONS = "_annotations.coco.json"


def roboflow(
    split: str,
    root: str | Path,
    train_split: str = "train",
    val_split: str = "valid",
    test_split: str | None = "test",
    classes: Sequence[str] | None = None,
) -> DetectionDataset:
    """Read ``<root>/<split>/_annotations.coco.json`` and the images beside it, as ``coco`` does.

    An export begins with a placeholder, a category that is the supercategory of the others and has
    no objects. It is no class. An export may lack ``valid`` and ``test``, and one that is not split
    has its images and annotations in ``root`` itself: all of it is "train".

    Args:
        split: "train", "val" or "test"; reads the folder ``train_split``, ``val_split`` or
            ``test_split``.
        classes: names in label order; objects of other classes are dropped and counted. None = all
            categories of the training file but the placeholder, in the order of their ids.

    Raises:
        UserError: as ``coco``. NoSplitError: there is no such folder.
        ConfigError: ``classes`` names a category that the training file does not have.
    """
    root = expand_home(root)
    if (root / ANNOTATIONS).exists() and not (root / train_split).exists():
        train_split = ""
    name = {"train": train_split, "val": val_split, "test": test_split}[split]
    train = read_json(root / train_split / ANNOTATIONS)
    if name is None or not (root / name).exists():
        raise NoSplitError(root, name or split)
    path = root / name / ANNOTATIONS
    file = train if split == "train" else read_json(path)
    ids = _class_ids(train, classes, root / train_split)
    by_name = {category: id for id, category in file.categories.items()}
    # Ids may differ between the splits; names are what they share. A class that this file lacks
    # must not get the id of another one.
    own = Classes(list(ids), [by_name.get(category, f"no id of {category}") for category in ids])
    data = dataset_of(file, path, root / name, own)
    data.category_ids = list(ids.values())
    if split == "train":
        refuse_without_objects(data.ignore, path, data.problems)
    return data


def _class_ids(train: CocoFile, classes: Sequence[str] | None, folder: Path) -> dict[str, Id]:
    """Id of each class in the training file, in label order."""
    by_name = {name: id for id, name in sorted(train.categories.items())}
    if classes is None:
        used = {name for name, id in by_name.items() if id in train.category}
        return {
            name: id for name, id in by_name.items() if name in used or name not in train.parents
        }
    for name in classes:
        if name not in by_name:
            there = ", ".join(by_name)
            raise ConfigError(f"data.classes: {name!r} is none of {there} ({folder / ANNOTATIONS})")
    return {name: by_name[name] for name in classes}
