"""Image files: which are there, their size, their pixels.

Frame of the boxes: pixels are given as a viewer shows them (EXIF orientation applied). Where that
disagrees with the annotated size but the stored orientation agrees, the image is given as stored.
"""

import os
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from frcnn.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")
ORIENTATION = 0x0112  # EXIF
SIDEWAYS = (5, 6, 7, 8)


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
        path = self.path(index)
        try:
            with _opened(path) as picture:
                pixels = np.array(_rgb(self._oriented(picture, index)))
        except Exception as error:  # a foreign file fails in many ways inside its decoder
            raise UserError(
                f"{path}: cannot be read as an image ({error or type(error).__name__}); "
                "frcnn.check_data names all such files"
            ) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def path(self, index: int) -> Path:
        """Where an image is."""
        return self.folder / str(self.files[index])

    def _oriented(self, picture: Image.Image, index: int) -> Image.Image:
        stated = int(self.widths[index]), int(self.heights[index])
        if picture.size == stated != shown_size(picture):
            return picture
        return ImageOps.exif_transpose(picture)


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height with the EXIF orientation applied; only the header is read."""
    sideways = picture.getexif().get(ORIENTATION) in SIDEWAYS
    return picture.size[::-1] if sideways else picture.size


def header_size(path: Path) -> tuple[int, int] | None:
    """Width and height as shown, or None where the file cannot be read."""
    sizes = header_sizes(path)
    return sizes[0] if sizes else None


def header_sizes(path: Path) -> list[tuple[int, int]]:
    """Width and height as shown, then as stored; none where the file cannot be read."""
    try:
        with _opened(path) as picture:
            return [shown_size(picture), picture.size]
    except Exception:  # as above
        return []


def _opened(path: Path) -> Image.Image:
    """The picture in a file, of which the header is read."""
    if not path.is_file():
        raise OSError("not a file")  # a pipe would be waited for without end
    return Image.open(path)


def home(path: str | Path) -> Path:
    """A path with ``~`` as the home folder; as it is where there is no such user."""
    return Path(os.path.expanduser(path))


def leaves_folder(file: str) -> bool:
    """Whether a path that an annotation gives leads out of the folder it is relative to."""
    return PurePath(file).is_absolute() or ".." in PurePath(file).parts


def present(folder: Path, files: list[str]) -> np.ndarray:
    """bool [I]: which files exist; one directory listing a folder, not one call a file.

    What ``leaves_folder`` counts as missing: a data set from elsewhere reads no other files.
    """
    listings: dict[str, set[str]] = {}
    found = np.zeros(len(files), dtype=bool)
    for row, file in enumerate(files):
        if leaves_folder(file):
            continue
        inside, name = os.path.split(file)
        if inside not in listings:
            listings[inside] = list_folder(folder / inside)
        found[row] = name in listings[inside]
    return found


def list_folder(folder: Path) -> set[str]:
    """Names in a folder; empty where there is no such folder.

    Raises:
        UserError: it cannot be listed.
    """
    if not os.path.isdir(folder):  # unlike Path's, false of a name that no file system takes
        return set()
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bit grey, which convert() would saturate to white
        grey = np.clip(np.asarray(picture), 0, 65535).astype(np.uint16) >> 8
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # or Pillow warns
    return picture.convert("RGB")
