"""Checks that need the image files, not only the annotations."""

import numpy as np

from frcnn.data.dataset import DetectionDataset
from frcnn.data.image_files import ImageFiles, header_sizes
from frcnn.data.records import refuse_without_objects
from frcnn.errors import UserError

OTHER_SIZE = "images of another size than annotated"
UNREADABLE = "unreadable images"


def drop_unusable_images(dataset: DetectionDataset, split: str) -> None:
    """Drop and count the images that cannot be opened or do not have the annotated size.

    This happens at the start, so that one bad file does not end a run at its last batch. It reads
    only the files' headers, which takes a tenth of a millisecond per image. Images that are drawn,
    not read from files, all stay.

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
    """Whether the header of an image states the annotated size; counts the problem if not."""
    if not isinstance(dataset.load, ImageFiles):
        return True
    sizes = header_sizes(dataset.load.path(index))
    stated = int(dataset.widths[index]), int(dataset.heights[index])
    where = f"{dataset.files[index]} (image {dataset.image_ids[index]})"
    if not sizes:
        dataset.problems.add(UNREADABLE, where, dropped=True)
    elif stated not in sizes:
        difference = f"{where}: {_format(sizes[0])}, its annotation says {_format(stated)}"
        dataset.problems.add(OTHER_SIZE, difference, dropped=True)
    return stated in sizes


def _format(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def check_images(dataset: DetectionDataset) -> None:
    """Decode every image; count those that a run drops, and those that would end a run."""
    for index in range(len(dataset)):
        try:
            if _fits(dataset, index):
                dataset.load(index)
        except UserError as error:
            dataset.problems.add("images that cannot be decoded", str(error), dropped=False)
