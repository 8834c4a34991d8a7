"""What is wrong with a data set: ``python -m frcnn.check_data data=voc data.root=DIR``."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frcnn.config.compose import command
from frcnn.errors import UserError

if TYPE_CHECKING:
    from frcnn.data import DetectionDataset

log = logging.getLogger(__name__)

MOST_CLASSES = 20  # of a line


def check_data(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Print counts and names of all problems of both splits.

    Raises:
        UserError: what would end a training run, after everything else is printed.
    """
    from frcnn.build import annotated
    from frcnn.data import check_images, count_copies, count_shared_images, unlisted_files
    from frcnn.data.image_size import image_size
    from frcnn.data.objects import objects_of

    train, val = found = [annotated(config["data"], split) for split in ("train", "val")]
    unlisted = unlisted_files(found)  # before images are dropped
    count_shared_images(train, val)
    ends: list[str] = []
    for split, data in zip(("train", "val"), found, strict=True):
        if config["images"]:
            try:
                check_images(data, split)
            except UserError as error:
                ends.append(f"{split} data: {error}")
    if config["images"]:
        count_copies(found)
    for split, data in zip(("train", "val"), found, strict=True):
        lines = [data.problems.table(), *data.warnings()[bool(data.problems) :]]
        lines = [f"{split}: {len(data)} images; objects: {classes(data)}", *lines]
        log.info("%s", "\n".join(lines))
    objects = objects_of(train)
    if len(objects.boxes):
        size = image_size(train.widths, train.heights, objects)
        log.info("an image size to try: data.min_size=%d data.max_size=%d", *size)
    if unlisted:
        log.info("%d image files are in neither split (first: %s)", len(unlisted), unlisted[0])
    if ends:
        raise UserError(f"a training run would end: {'; '.join(ends)}")


def classes(data: "DetectionDataset") -> str:
    """The number of objects of each class; of many classes the most and the least frequent."""
    numbers, names = data.class_frequencies(), data.class_names
    if len(names) <= MOST_CLASSES:
        return named(names, numbers, range(len(names)))
    order = (-numbers).argsort(kind="stable").tolist()
    half = MOST_CLASSES // 2
    return (
        f"{numbers.sum()} of {len(names)} classes, {(numbers == 0).sum()} of them without any; "
        f"most {named(names, numbers, order[:half])}; fewest {named(names, numbers, order[-half:])}"
    )


def named(names: list[str], numbers: Any, labels: Any) -> str:
    """``cat 5, dog 3``."""
    return ", ".join(f"{names[label]} {numbers[label]}" for label in labels)


def main() -> None:
    """Entry point."""
    command("check_data", check_data)


if __name__ == "__main__":
    main()
