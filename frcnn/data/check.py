"""Checks that need the image files, not only the annotations."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frcnn.data.dataset import DetectionDataset
from frcnn.data.image_files import (
    EXTENSIONS,
    ImageFiles,
    broken,
    decode_error,
    header_sizes,
    list_folder,
    unusual_depth,
)
from frcnn.data.records import refuse_without_objects
from frcnn.errors import UserError

OTHER_SIZE = "images of another size than annotated"
UNREADABLE = "unreadable images"
UNDECODABLE = "images that cannot be decoded"
SHARED = "images that the training split has too"
COPIES = "copies of another image file"


def drop_unusable_images(dataset: DetectionDataset, split: str) -> None:
    """Drop and count the images that are not whole or do not have the annotated size.

    This happens at the start, so that one bad file does not end a run at its last batch. It reads
    the files' headers and their ends (`image_files.broken`), which takes a fifth of a millisecond
    per JPEG file. Images that are drawn, not read from files, all stay.

    Raises:
        UserError: no image is left, or no object to train on.
    """
    load = dataset.load
    fits = np.array([_fits(dataset, index) for index in range(len(dataset))], dtype=bool)
    if not isinstance(load, ImageFiles) or fits.all():
        return
    if not fits.any():
        raise UserError(f"{load.folder}: no image can be used ({dataset.problems.summary()})")
    dataset.keep(fits)
    dataset.load = ImageFiles(load.folder, dataset.files, dataset.widths, dataset.heights)
    if split == "train":
        refuse_without_objects(dataset.ignore, load.folder, dataset.problems)


def _fits(dataset: DetectionDataset, index: int) -> bool:
    """Whether an image is whole and has the annotated size; counts the problem if not."""
    if not isinstance(dataset.load, ImageFiles):
        return True
    path = dataset.load.path(index)
    sizes = header_sizes(path)
    stated = int(dataset.widths[index]), int(dataset.heights[index])
    where = f"{dataset.files[index]} (image {dataset.image_ids[index]})"
    if sizes and stated not in sizes:
        difference = f"{where}: {_format(sizes[0])}, its annotation says {_format(stated)}"
        dataset.problems.add(OTHER_SIZE, difference, dropped=True)
        return False
    reason = broken(path) if sizes else decode_error(path)
    if reason or not sizes:
        dataset.problems.add(UNREADABLE, f"{where}: {reason}", dropped=True)
        return False
    return True


def _format(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def check_images(dataset: DetectionDataset, split: str) -> None:
    """Decode every image; drop and count what a run drops, and count what would end a run.

    Raises:
        UserError: a run would end: as `drop_unusable_images`, or an image cannot be decoded.
    """
    drop_unusable_images(dataset, split)
    undecodable: list[str] = []
    for index in range(len(dataset)):
        try:
            dataset[index]
        except UserError as error:
            dataset.problems.add(UNDECODABLE, str(error), dropped=False)
            undecodable.append(str(error))
            continue
        if isinstance(dataset.load, ImageFiles):
            note = unusual_depth(dataset.load.path(index))
            if note:
                dataset.problems.add(note, dataset.describe(index), dropped=False)
    if undecodable:
        raise UserError(f"{len(undecodable)} images cannot be decoded (first: {undecodable[0]})")


def count_shared_images(train: DetectionDataset, val: DetectionDataset) -> None:
    """Count the validation images whose file the training split has too."""
    known = set(image_paths(train))
    for index, path in enumerate(image_paths(val)):
        if path in known:
            val.problems.add(SHARED, val.describe(index), dropped=False)


def count_copies(datasets: Sequence[DetectionDataset]) -> None:
    """Count the images whose file has the content of another file, of any of the data sets."""
    places = [
        (data, row, path)
        for data in datasets
        for row, path in enumerate(image_paths(data))
        if os.path.isfile(path)  # no link to a file that is gone
    ]
    sizes = Counter({path: os.path.getsize(path) for *_, path in places}.values())
    first: dict[bytes, str] = {}
    for data, row, path in places:
        if sizes[os.path.getsize(path)] == 1:
            continue
        original = first.setdefault(_digest(path), path)
        if original != path:
            where = f"{data.describe(row)} is {os.path.basename(original)}"
            data.problems.add(COPIES, where, dropped=False)


def unlisted_files(datasets: Sequence[DetectionDataset]) -> list[str]:
    """The image files that stand beside those of the data sets and belong to none of them."""
    listed = {path for data in datasets for path in image_paths(data)}
    beside = {
        os.path.join(folder, name)
        for folder in {os.path.dirname(path) for path in listed}
        for name in list_folder(Path(folder))
        if name.lower().endswith(EXTENSIONS)
    }
    return sorted(beside - listed)


def image_paths(dataset: DetectionDataset) -> list[str]:
    """The path of each image file; none where images are drawn."""
    if not isinstance(dataset.load, ImageFiles):
        return []
    folder = os.path.realpath(dataset.load.folder)
    return [os.path.normpath(os.path.join(folder, file)) for file in dataset.files.tolist()]


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
