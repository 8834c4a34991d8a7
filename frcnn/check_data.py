"""What is wrong with a data set: ``python -m frcnn.check_data data=voc data.root=DIR``."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frcnn.config.compose import command
from frcnn.errors import UserError

if TYPE_CHECKING:
    from frcnn.data import DetectionDataset
    from frcnn.survey.settings import Setting

log = logging.getLogger(__name__)

MOST_CLASSES = 20  # of a line


def check_data(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Print counts and names of all problems of both splits; write them as a page, too.

    Raises:
        UserError: what would end a training run, after everything else is printed.
    """
    from frcnn.build import annotated
    from frcnn.data import count_copies, count_shared_images, unlisted_files
    from frcnn.data.objects import objects_of
    from frcnn.survey.settings import settings

    splits = {split: annotated(config["data"], split) for split in ("train", "val")}
    train, val = splits.values()
    unlisted = unlisted_files([train, val])  # before images are dropped
    count_shared_images(train, val)
    ends = opened(splits) if config["images"] else []
    if config["images"]:
        count_copies([train, val])
    for split, data in splits.items():
        lines = [data.problems.table(), *data.warnings()[bool(data.problems) :]]
        lines = [f"{split}: {len(data)} images; objects: {classes(data)}", *lines]
        log.info("%s", "\n".join(lines))
    objects = objects_of(train)
    found = settings(config["model"], train, objects) if len(objects.boxes) else None
    for line in suggested(*found) if found else ():
        log.info("%s", line)
    if unlisted:
        log.info("%d image files are in neither split (first: %s)", len(unlisted), unlisted[0])
    if config["page"]:
        write_page(Path(config["page"]), choices["data"], splits, found, unlisted, ends)
    if ends:
        raise UserError(f"a training run would end: {'; '.join(ends)}")


def opened(splits: dict[str, "DetectionDataset"]) -> list[str]:
    """Open every image, count what is wrong; returns what would end a run."""
    from frcnn.data import check_images

    ends = []
    for split, data in splits.items():
        try:
            check_images(data, split)
        except UserError as error:
            ends.append(f"{split} data: {error}")
    return ends


def suggested(settings: Sequence["Setting"], notes: Sequence[str]) -> list[str]:
    """The suggestions as lines to copy; a data set's own file can hold them, too."""
    from frcnn.survey.tables import WHERE, last_of

    lines = [one.override.replace("model.", "data.") for one in last_of(settings)]
    lines = [f"{WHERE['min_size' in line]}: {line}" for line in lines]
    return [*lines, *(note.replace("`", "") for note in notes)]


def write_page(path: Path, name: str, *content: Any) -> None:
    """Write the page and say where."""
    from frcnn.runfolder.files import write_text
    from frcnn.survey.page import check_page

    write_text(path, check_page(f"Check of the data set {name}", *content))
    log.info("page: %s", path)


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
