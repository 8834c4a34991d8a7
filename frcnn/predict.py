"""Draw boxes on images: ``python -m frcnn.predict checkpoint=P input=FILE|DIR|GLOB output=DIR``."""

import glob
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frcnn.config.compose import command
from frcnn.errors import UserError
from frcnn.runfolder.files import atomic_write, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from frcnn.evaluation.load import Trained

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def predict(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Write a picture with boxes for every image, and predictions.json for all of them."""
    from frcnn.evaluation.load import load_trained

    files = find_images(config["input"])
    trained = load_trained(
        config["checkpoint"], config["device"], config["precision"], config["trust"]
    )
    output = Path(config["output"] or "predictions")
    rows = []
    for file, name in zip(files, picture_names(files), strict=True):
        try:
            image = _read(file)
        except UserError as error:
            log.warning("%s", error)
            continue
        boxes = _predict_one(trained, image, output / name, config["min_score"])
        rows.append({"file": str(file), "picture": name, "boxes": boxes})
    write_text(output / "predictions.json", json.dumps(rows, indent=1) + "\n")
    log.info("%d of %d images, pictures and predictions.json in %s", len(rows), len(files), output)
    if not rows:
        raise UserError(f"{config['input']}: no image could be read")


def find_images(text: str) -> list[Path]:
    """The image files that a file name, a folder or a glob stands for, sorted.

    Raises:
        UserError: there is none.
    """
    # Escaped, a name with brackets is no pattern.
    there = os.path.exists(text)  # unlike Path's, false of a name that no file system takes
    pattern = glob.escape(text) if there else text
    pattern = f"{pattern}/*" if there and Path(text).is_dir() else pattern
    files = sorted({Path(p) for p in glob.glob(pattern) if Path(p).suffix.lower() in SUFFIXES})
    if not files:
        raise UserError(f"input={text}: no image there (of {', '.join(SUFFIXES)})")
    return files


def picture_names(files: Sequence[Path]) -> list[str]:
    """Where the picture of each image goes below the output folder: no two are the same.

    Images keep their whole name, since a.jpg and a.png may stand in one folder, and their place
    below the folder that is common to all of them.
    """
    full = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(file) for file in full])
    return [f"{os.path.relpath(file, common)}_boxes.png" for file in full]


def _predict_one(
    trained: "Trained", image: "Tensor", picture: Path, min_score: float
) -> list[dict[str, Any]]:
    """The boxes of an image of at least a score, drawn into a file and as rows.

    Boxes without width or height, which a RetinaNet may return, are left out.
    """
    import torch

    from frcnn.build import prepare
    from frcnn.evaluation.drawing import draw_boxes
    from frcnn.parallel.device import autocast

    images = prepare([image], trained.device)
    with torch.inference_mode(), autocast(trained.device, trained.dtype):
        found = {key: value.cpu() for key, value in trained.detector(images)[0].items()}
    sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
    kept = (found["scores"] >= min_score) & (sides > 0).all(1)
    found = {key: value[kept] for key, value in found.items()}
    shown = (found["boxes"], found["labels"], found["scores"])
    drawn = draw_boxes(image, *shown, trained.class_names)
    with atomic_write(picture) as out:
        drawn.save(out, "PNG")
    boxes = zip(*(found[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
    return [
        {"xyxy": box, "class": trained.class_names[label - 1], "score": score}
        for box, label, score in boxes
    ]


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
