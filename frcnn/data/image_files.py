"""Image files: whether they exist, their size, their pixels.

Orientation: an image is returned as a viewer shows it, with the EXIF orientation applied. If only
the size without that orientation equals the annotated size, the image is returned as stored. So the
boxes always fit the pixels.
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

    Args:
        folder: the folder that the file names are relative to.
        files: names [I].
        widths, heights: the annotated sizes [I] in pixels, which decide the orientation.

    Raises (on call):
        UserError: the file cannot be read; the message names it.
    """

    def __init__(
        self, folder: Path, files: np.ndarray, widths: np.ndarray, heights: np.ndarray
    ) -> None:
        self.folder, self.files, self.widths, self.heights = folder, files, widths, heights

    def __call__(self, index: int) -> Tensor:
        path = self.path(index)
        try:
            with _open_image(path) as picture:
                pixels = np.array(_rgb(self._oriented(picture, index)))
        except Exception as error:  # decoders raise errors of many types on malformed files
            raise UserError(
                f"{path}: cannot be read as an image ({error or type(error).__name__}); "
                "frcnn.check_data names all such files"
            ) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def path(self, index: int) -> Path:
        """Path of an image."""
        return self.folder / str(self.files[index])

    def _oriented(self, picture: Image.Image, index: int) -> Image.Image:
        stated = int(self.widths[index]), int(self.heights[index])
        if picture.size == stated != displayed_size(picture):
            return picture
        return ImageOps.exif_transpose(picture)


def displayed_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height with the EXIF orientation applied; reads only the header."""
    sideways = picture.getexif().get(ORIENTATION) in SIDEWAYS
    return picture.size[::-1] if sideways else picture.size


def header_size(path: Path) -> tuple[int, int] | None:
    """Width and height with the EXIF orientation applied, or None if the file cannot be read."""
    sizes = header_sizes(path)
    return sizes[0] if sizes else None


def header_sizes(path: Path) -> list[tuple[int, int]]:
    """(width, height) with the EXIF orientation applied, then without; [] if unreadable."""
    try:
        with _open_image(path) as picture:
            return [displayed_size(picture), picture.size]
    except Exception:  # decoders raise errors of many types on malformed files
        return []


def _open_image(path: Path) -> Image.Image:
    """Open an image file and read its header."""
    if not path.is_file():
        raise OSError("not a file")  # to open a pipe would block for ever
    return Image.open(path)


def expand_home(path: str | Path) -> Path:
    """The path with ``~`` or ``~user`` expanded; unchanged if there is no such user."""
    return Path(os.path.expanduser(path))


def leaves_folder(file: str) -> bool:
    """Whether a path from an annotation is absolute or contains ``..``."""
    return PurePath(file).is_absolute() or ".." in PurePath(file).parts


def files_exist(folder: Path, files: list[str]) -> np.ndarray:
    """bool [I]: whether each file exists. Lists each folder once; one call per file would be slow.

    A path that leaves the folder counts as missing, so that annotations from elsewhere cannot make
    us read other files.
    """
    listings: dict[str, set[str]] = {}
    exists = np.zeros(len(files), dtype=bool)
    for row, file in enumerate(files):
        if leaves_folder(file):
            continue
        subfolder, name = os.path.split(file)
        if subfolder not in listings:
            listings[subfolder] = list_folder(folder / subfolder)
        exists[row] = name in listings[subfolder]
    return exists


def list_folder(folder: Path) -> set[str]:
    """Names in a folder; empty if the folder does not exist.

    Raises:
        UserError: the folder cannot be listed.
    """
    if not os.path.isdir(folder):  # Path.is_dir would raise for some invalid names
        return set()
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey: convert() would clip almost all of it to white
        grey = np.clip(np.asarray(picture), 0, 65535).astype(np.uint16) >> 8
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # without this step Pillow warns
    return picture.convert("RGB")
