"""Detect objects: ``python -m frcnn.predict checkpoint=P input=FILE|DIR|GLOB output=DIR``."""

import glob
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frcnn.config.compose import command
from frcnn.errors import UserError
from frcnn.runfolder.files import atomic_write, write_text

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from frcnn.evaluation.load import Trained

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SHEET = "contact_sheet_boxes.png"
# The names that this command gives to its drawings, which are not read as images.
DRAWING = re.compile(
    r".*\.(jpe?g|png|bmp|webp|tiff?)_boxes\.png|" + SHEET, re.IGNORECASE | re.DOTALL
)
DEFAULT_SCORE = 0.5


def predict(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Write a picture with boxes for every image, and the files of ``Written`` for all of them."""
    from frcnn.evaluation.load import load_trained

    files = find_images(config["input"], config["recursive"])
    trained = load_trained(
        config["checkpoint"], config["device"], config["precision"], config["trust"]
    )
    lowest = lowest_scores(config["min_score"], trained.class_names)
    written = Written(Path(config["output"] or "predictions"), trained, config["contact_sheet"])
    for file, name in zip(files, picture_names(files), strict=True):
        try:
            image = _read(file)
        except UserError as error:
            log.warning("%s", error)
            continue
        written.add(file, name, image, _detect(trained, image, lowest))
    written.finish()
    log.info(
        "%d of %d images; pictures, predictions.json and results.json in %s",
        len(written.rows),
        len(files),
        written.folder,
    )
    if not written.rows:
        raise UserError(f"{config['input']}: no image could be read")


class Written:
    """What the command writes below its output folder.

    A picture with boxes for each image; ``predictions.json``, boxes and class names by image;
    ``results.json``, the same as COCO results, whose image and category ids ``images.json``
    explains in COCO's format without annotations; and a contact sheet of the first pictures.

    Args:
        sheet: largest number of pictures on the contact sheet; 0 = no sheet.
    """

    def __init__(self, folder: Path, trained: "Trained", sheet: int) -> None:
        self.folder, self.trained, self.sheet = folder, trained, sheet
        self.rows: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []  # COCO's rows; the id is the position
        self.detections: list[dict[str, Any]] = []
        self.pictures: list[Image] = []  # small ones, for the contact sheet

    def add(self, file: Path, name: str, image: "Tensor", found: dict[str, "Tensor"]) -> None:
        """Draw an image of a file and keep its detections; ``name`` is the picture's."""
        from frcnn.evaluation.drawing import draw_boxes, thumbnail

        names = self.trained.class_names
        drawn = draw_boxes(image, found["boxes"], found["labels"], found["scores"], names)
        _save(drawn, self.folder / name)
        if len(self.pictures) < self.sheet:
            self.pictures.append(thumbnail(drawn, str(file)))
        columns = (found[key].tolist() for key in ("boxes", "labels", "scores"))
        boxes = [
            {"xyxy": box, "class": names[label - 1], "score": score}
            for box, label, score in zip(*columns, strict=True)
        ]
        self.rows.append({"file": str(file), "picture": name, "boxes": boxes})
        height, width = image.shape[1:]
        number = len(self.images)
        self.images.append({"id": number, "file_name": str(file), "width": width, "height": height})
        self.detections.append({"image_id": number, **found})

    def finish(self) -> None:
        """Write the files that hold all images."""
        from frcnn.evaluation.coco import write_results
        from frcnn.evaluation.drawing import contact_sheet

        write_text(self.folder / "predictions.json", json.dumps(self.rows, indent=1) + "\n")
        names, ids = self.trained.class_names, self.trained.category_ids
        categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
        truth = {"images": self.images, "annotations": [], "categories": categories}
        positions = range(len(self.images))
        write_results(self.folder, self.detections, truth, positions, ids, "images.json")
        if len(self.pictures) > 1:
            _save(contact_sheet(self.pictures), self.folder / SHEET)


def find_images(text: str, recursive: bool = False) -> list[Path]:
    """The image files that a file name, a folder or a glob stands for, sorted.

    ``**`` in a glob stands for any number of folders. Pictures that this command drew are left out.

    Args:
        recursive: enter the folders below a folder.

    Raises:
        UserError: there is none.
    """
    # Escaped, a name with brackets is no pattern.
    there = os.path.exists(text)  # unlike Path's, false of a name that no file system takes
    pattern = glob.escape(text) if there else text
    if there and Path(text).is_dir():
        pattern = os.path.join(pattern, "**" if recursive else "", "*")
    found = {Path(path) for path in glob.glob(pattern, recursive=True)}
    images = {path for path in found if path.suffix.lower() in SUFFIXES}
    drawings = {path for path in images if DRAWING.fullmatch(path.name)}
    if drawings:
        log.info("left out %d pictures that frcnn.predict drew (*_boxes.png)", len(drawings))
    if not images - drawings:
        raise UserError(f"input={text}: no image there (of {', '.join(SUFFIXES)})")
    return sorted(images - drawings)


def lowest_scores(
    min_score: float | Mapping[str, float], class_names: Sequence[str]
) -> list[float]:
    """The lowest score of a shown box, by class; those that a mapping does not name have 0.5.

    Raises:
        UserError: the mapping names a class that the detector does not have.
    """
    if not isinstance(min_score, Mapping):
        return [min_score] * len(class_names)
    unknown = sorted(min_score.keys() - set(class_names))
    if unknown:
        known = ", ".join(class_names)
        raise UserError(f"min_score: the detector has no class {unknown[0]!r}; it has {known}")
    return [min_score.get(name, DEFAULT_SCORE) for name in class_names]


def picture_names(files: Sequence[Path]) -> list[str]:
    """Where the picture of each image goes below the output folder: no two are the same.

    Images keep their whole name, since a.jpg and a.png may stand in one folder, and their place
    below the folder that is common to all of them.
    """
    full = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(file) for file in full])
    return [f"{os.path.relpath(file, common)}_boxes.png" for file in full]


def _detect(trained: "Trained", image: "Tensor", lowest: Sequence[float]) -> dict[str, "Tensor"]:
    """The boxes of an image of at least their class's score, on the CPU.

    Boxes without width or height, which a RetinaNet may return, are left out.
    """
    import torch

    from frcnn.data import prepare
    from frcnn.parallel.device import autocast

    images = prepare([image], trained.device)
    with torch.inference_mode(), autocast(trained.device, trained.dtype):
        found = {key: value.cpu() for key, value in trained.detector(images)[0].items()}
    sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
    least = torch.tensor(lowest)[found["labels"] - 1]
    kept = (found["scores"] >= least) & (sides > 0).all(1)
    return {key: value[kept] for key, value in found.items()}


def _save(picture: "Image", path: Path) -> None:
    with atomic_write(path) as file:
        picture.save(file, "PNG")


def _read(file: Path) -> "Tensor":
    """uint8 [3, H, W], turned as its EXIF tag says."""
    import numpy as np

    from frcnn.data.image_files import ImageFiles, header_size

    width, height = header_size(file) or (0, 0)
    read = ImageFiles(file.parent, np.array([file.name]), np.array([width]), np.array([height]))
    return read(0)


def main() -> None:
    """Entry point."""
    command("predict", predict)


if __name__ == "__main__":
    main()
