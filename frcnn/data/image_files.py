"""Image files: which are there, their size, their pixels.

Frame of the boxes: pixels are given as a viewer shows them (EXIF orientation applied). Where that
disagrees with the annotated size but the stored orientation agrees, the image is given as stored.
"""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from frcnn.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError)


class ImageFiles:
    """index -> uint8 RGB image [3, H, W], decoded from a file.

    Raises (on call):
        UserError: the file cannot be read; names it.
    """

    def __init__(
        self, folder: Path, files: np.ndarray, widths: np.ndarray, heights: np.ndarray
    ) -> None:
        self.folder, self.files, self.widths, self.heights = folder, files, widths, heights

    def __call__(self, index: int) -> Tensor:
        path = self.folder / str(self.files[index])
        try:
            with Image.open(path) as picture:
                pixels = np.array(_rgb(self._oriented(picture, index)))
        except _UNREADABLE as error:
            raise UserError(
                f"{path}: cannot be read as an image ({error}); "
                "frcnn.check_data names all such files"
            ) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def _oriented(self, picture: Image.Image, index: int) -> Image.Image:
        stated = int(self.widths[index]), int(self.heights[index])
        if picture.size == stated != shown_size(picture):
            return picture
        return ImageOps.exif_transpose(picture)


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height with the EXIF orientation applied; only the header is read."""
    sideways = picture.getexif().get(0x0112, 1) >= 5
    return picture.size[::-1] if sideways else picture.size


def header_size(path: Path) -> tuple[int, int] | None:
    """Width and height as shown, or None where the file cannot be read."""
    try:
        with Image.open(path) as picture:
            return shown_size(picture)
    except _UNREADABLE:
        return None


def present(folder: Path, files: list[str]) -> np.ndarray:
    """bool [I]: which files exist; one directory listing a folder, not one call a file."""
    listings: dict[str, set[str]] = {}
    found = np.zeros(len(files), dtype=bool)
    for row, file in enumerate(files):
        inside, name = os.path.split(file)
        if inside not in listings:
            listings[inside] = list_folder(folder / inside)
        found[row] = name in listings[inside]
    return found


def list_folder(folder: Path) -> set[str]:
    """Names in a folder; empty where there is no such folder."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bit grey, which convert() would saturate to white
        grey = np.clip(np.asarray(picture), 0, 65535).astype(np.uint16) >> 8
        picture = Image.fromarray(grey.astype(np.uint8))
    return picture.convert("RGB")
