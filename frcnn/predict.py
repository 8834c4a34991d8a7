"""Draw boxes on images: ``python -m frcnn.predict checkpoint=P input=FILE|DIR|GLOB output=DIR``."""

import glob
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frcnn.config import command
from frcnn.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from frcnn.trained import Trained

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def predict(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Write a picture with boxes for every image, and predictions.json for all of them."""
    from frcnn.trained import load_trained

    files = find_images(config["input"])
    trained = load_trained(config["checkpoint"], config["device"], config["precision"])
    output = Path(config["output"] or "predictions")
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for file in files:
        try:
            rows.append(_predict_one(trained, file, output, config["min_score"]))
        except UserError as error:
            log.warning("%s", error)
    (output / "predictions.json").write_text(json.dumps(rows, indent=1) + "\n")
    log.info("%d of %d images, pictures and predictions.json in %s", len(rows), len(files), output)
    if not rows:
        raise UserError(f"{config['input']}: no image could be read")


def find_images(text: str) -> list[Path]:
    """The image files that a file name, a folder or a glob stands for, sorted.

    Raises:
        UserError: there is none.
    """
    # Escaped, a name with brackets is no pattern.
    pattern = glob.escape(text) if Path(text).exists() else text
    pattern = f"{pattern}/*" if Path(text).is_dir() else pattern
    files = sorted(Path(p) for p in glob.glob(pattern) if Path(p).suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"input={text}: no image there (of {', '.join(SUFFIXES)})")
    return files


def _predict_one(trained: "Trained", file: Path, output: Path, min_score: float) -> dict[str, Any]:
    import torch

    from frcnn.assemble import prepare
    from frcnn.device import autocast
    from frcnn.drawing import draw_boxes

    image = _read(file)
    images = prepare([image], trained.device)
    with torch.inference_mode(), autocast(trained.device, trained.dtype):
        found = {key: value.cpu() for key, value in trained.detector(images)[0].items()}
    found = {key: value[found["scores"] >= min_score] for key, value in found.items()}
    shown = (found["boxes"], found["labels"], found["scores"])
    # The whole file name: a.jpg and a.png may stand in one folder.
    name = f"{file.name}_boxes.png"
    draw_boxes(image, *shown, trained.class_names).save(output / name)
    boxes = zip(*(found[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
    return {
        "file": str(file),
        "picture": name,
        "boxes": [
            {"xyxy": box, "class": trained.class_names[label - 1], "score": score}
            for box, label, score in boxes
        ],
    }


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
