"""What reading the annotations alone cannot find."""

import numpy as np

from frcnn.data.dataset import DetectionDataset
from frcnn.data.image_files import ImageFiles, header_sizes
from frcnn.data.records import refuse_without_objects
from frcnn.errors import UserError

OTHER_SIZE = "images of another size than annotated"
UNREADABLE = "unreadable images"


def drop_misfits(dataset: DetectionDataset, split: str) -> None:
    """Drop and count images that are no images or not of the annotated size, by their headers.

    At the start, since a run should not end at its last batch over one file; a tenth of a
    millisecond an image.

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
    """Whether an image's header can be read and agrees with the annotation, else counted."""
    if not isinstance(dataset.load, ImageFiles):
        return True  # drawn, not read
    sizes = header_sizes(dataset.load.path(index))
    stated = int(dataset.widths[index]), int(dataset.heights[index])
    where = f"{dataset.files[index]} (image {dataset.image_ids[index]})"
    if not sizes:
        dataset.problems.add(UNREADABLE, where, dropped=True)
    elif stated not in sizes:
        differing = f"{where}: {_by(sizes[0])}, its annotation says {_by(stated)}"
        dataset.problems.add(OTHER_SIZE, differing, dropped=True)
    return stated in sizes


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def check_images(dataset: DetectionDataset) -> None:
    """Decode every image, and count those that a run drops or would end at."""
    for index in range(len(dataset)):
        try:
            if _fits(dataset, index):
                dataset.load(index)
        except UserError as error:
            dataset.problems.add("images that cannot be decoded", str(error), dropped=False)
