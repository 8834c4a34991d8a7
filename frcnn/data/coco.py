"""Reader of COCO's JSON format. It reads boxes; masks are neither needed nor kept."""

import logging
from pathlib import Path

import numpy as np

from frcnn.data.coco_json import CocoFile, Id, categories_of, read_json
from frcnn.data.dataset import DetectionDataset
from frcnn.data.image_files import (
    ImageFiles,
    decode_error,
    expand_home,
    files_exist,
    header_size,
    leaves_folder,
    none_found,
)
from frcnn.data.layouts import coco_annotations, coco_images
from frcnn.data.problems import Problems
from frcnn.data.records import (
    ROTATED,
    Classes,
    Images,
    Objects,
    RawObjects,
    clean_objects,
    count_repeated_files,
    refuse_tiny_boxes,
    refuse_without_objects,
)
from frcnn.errors import ConfigError, NoSplitError, UserError, printable

log = logging.getLogger(__name__)


def coco2017(split: str, root: str | Path) -> DetectionDataset:
    """`coco` for the folders of COCO 2017: train2017, val2017 and annotations below `root`."""
    root = Path(root)
    return coco(
        split,
        train_images=root / "train2017",
        train_annotations=root / "annotations/instances_train2017.json",
        val_images=root / "val2017",
        val_annotations=root / "annotations/instances_val2017.json",
    )


def coco(
    split: str,
    train_images: str | Path | None = None,
    train_annotations: str | Path | None = None,
    val_images: str | Path | None = None,
    val_annotations: str | Path | None = None,
    test_images: str | Path | None = None,
    test_annotations: str | Path | None = None,
    root: str | Path | None = None,
) -> DetectionDataset:
    """Read one split; labels 1..C follow the order of the category ids.

    Args:
        split: "train", "val" or "test".
        train_images, val_images, test_images: image folders. Each `file_name` is relative to its
            folder, and must not lead out of it.
        train_annotations, val_annotations, test_annotations: JSON files. The classes are the
            training file's categories; the other files may lack some of them, in any order.
            Annotations need image_id, category_id and bbox; area, iscrowd and id are optional. Ids
            may be numbers or strings.
        root: a folder in one of the layouts of `frcnn.data.layouts`, in place of the other paths.
            Without a split, all its images are "train".

    Images that are not in their folder are dropped and counted. Annotations that cannot be used are
    dropped and counted by kind. An image file is opened here only if the JSON file does not state
    its size; `frcnn.check_data` opens all of them. Crowds are ignored areas: neither object nor
    background.

    Raises:
        NoSplitError: there is no such split.
        UserError: a file is missing or malformed, an image id is used twice, no image exists, the
            training split has no object, all boxes are smaller than a pixel, or a file has a
            category that the training file does not have.
    """
    folders = {"train": train_images, "val": val_images, "test": test_images}
    files = {"train": train_annotations, "val": val_annotations, "test": test_annotations}
    if root is not None:
        if any(path is not None for path in (*folders.values(), *files.values())):
            raise ConfigError("data.root finds all files itself: set it alone, or the other paths")
        path, folder, file = _in_layout(expand_home(root), split)
        first, _ = coco_annotations(expand_home(root), "train")
    else:
        path, folder = _stated(split, files[split], folders[split])
        first, _ = _stated("train", train_annotations, train_images)
        file = read_json(path)
    categories = file.categories if split == "train" else categories_of(first)
    refuse_other_categories(file, path, categories)
    data = dataset_of(file, path, folder, unique_classes(categories))
    if split == "train":
        refuse_without_objects(data.ignore, path, data.problems)
    return data


def _stated(split: str, path: str | Path | None, folder: str | Path | None) -> tuple[Path, Path]:
    """The annotation file and the image folder that the configuration names."""
    if split != "train" and path is None and folder is None:
        raise NoSplitError(f"data.{split}_annotations", split)
    if path is None or folder is None:
        raise ConfigError(
            f"data=coco needs data.{split}_images and data.{split}_annotations, or data.root alone"
        )
    return expand_home(path), expand_home(folder)


def _in_layout(root: Path, split: str) -> tuple[Path, Path, CocoFile]:
    """The annotation file, the image folder and the file's content, in a known layout."""
    path, name = coco_annotations(root, split)
    file = read_json(path)
    folder, file.files = coco_images(root, name, file)
    log.info("%s: %s, images in %s", split, path, folder)
    return path, folder, file


def dataset_of(file: CocoFile, path: Path, folder: Path, classes: Classes) -> DetectionDataset:
    """The images of a file that are in a folder; objects of other classes are dropped and counted.

    Raises:
        UserError: no image is there, or all boxes are smaller than a pixel.
    """
    problems = Problems()
    keep, images = _images(file, folder, problems)
    if not keep.any():
        missing = np.flatnonzero(~files_exist(folder, file.files))
        first = file.files[missing[0]] if len(missing) else None
        raise UserError(none_found(folder, str(path), first, problems))
    count_repeated_files(images, problems)
    objects = _objects(file, images, keep, classes.ids, problems)
    refuse_tiny_boxes(objects.boxes, path)
    return DetectionDataset(ImageFiles(folder, *images[1:]), images, objects, classes, problems)


def refuse_other_categories(file: CocoFile, path: Path, train: dict[Id, str]) -> None:
    """Check that the training file has each category of a file.

    Raises:
        UserError: it lacks one, or names it otherwise.
    """
    differing = sorted({*file.categories.items()} - {*train.items()}, key=str)
    if differing:
        named = ", ".join(f"{id}: {name!r}" for id, name in differing[:6])
        raise UserError(
            f"{path}: its categories (id: name) differ from the training file's in {named}; "
            "give it categories of the training file only"
        )


def unique_classes(categories: dict[Id, str]) -> Classes:
    """The classes in the order of their ids, numbers before strings.

    Results are reported by name. If two ids share a name, the id is added to both names.
    """
    ids = sorted(categories, key=lambda id: (isinstance(id, str), id))
    names = [categories[id] for id in ids]
    shared = {name for name in names if names.count(name) > 1}
    pairs = zip(ids, names, strict=True)
    unique = [printable(f"{name} (id {id})") if name in shared else name for id, name in pairs]
    return Classes(unique, ids)


def _images(file: CocoFile, folder: Path, problems: Problems) -> tuple[np.ndarray, Images]:
    """bool [all images]: whether an image is kept; and the images that are."""
    keep = files_exist(folder, file.files)
    for row in np.flatnonzero(~keep).tolist():
        outside = leaves_folder(file.files[row])
        kind = "file names that leave the folder" if outside else "images missing in the folder"
        problems.add(kind, file.files[row], dropped=True)
    sizes = file.sizes.copy()
    for row in np.flatnonzero(keep & (sizes <= 0).any(axis=1)).tolist():
        size = header_size(folder / file.files[row])
        if size is None:
            reason = decode_error(folder / file.files[row])
            problems.add("unreadable images", f"{file.files[row]}: {reason}", dropped=True)
            keep[row] = False
        else:
            sizes[row] = size
    rows = np.flatnonzero(keep).tolist()
    names = np.array([file.files[row] for row in rows], dtype=np.str_)
    return keep, Images([file.ids[row] for row in rows], names, *sizes[rows].T.copy())


def _objects(
    file: CocoFile, images: Images, keep: np.ndarray, ids: list[Id], problems: Problems
) -> Objects:
    _count_repeated_ids(file, problems)
    for row in np.flatnonzero(file.image < 0).tolist():
        problems.add("annotations of an unknown image", file.name(row), dropped=True)
    # Annotations of a dropped image are dropped too, and not counted as a problem.
    rows = np.flatnonzero((file.image >= 0) & keep[file.image])
    for row in rows[file.rotated[rows]].tolist():
        problems.add(ROTATED, file.name(row), dropped=False)
    label_of: dict[Id | None, int] = {id: label for label, id in enumerate(ids, start=1)}
    raw = RawObjects(
        image=(np.cumsum(keep) - 1)[file.image[rows]],
        boxes=file.boxes[rows],
        labels=np.array([label_of.get(id, 0) for id in file.category], dtype=np.int64)[rows],
        ignore=file.crowd[rows],
        areas=file.areas[rows],
        name=lambda row: file.name(int(rows[row])),
    )
    return clean_objects(raw, *images[2:], problems, images.files)


def _count_repeated_ids(file: CocoFile, problems: Problems) -> None:
    """Count annotation ids that are 0 or repeated.

    They do no harm here, because annotations get new ids. COCO's evaluators misread such a file.
    """
    seen = set()
    for row, id in enumerate(file.annotation_ids):
        if id is not None and (id == 0 or id in seen):
            problems.add("annotation ids that are 0 or repeated", file.name(row), dropped=False)
        seen.add(id)
