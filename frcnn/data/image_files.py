"""Image files: whether they exist, their size, their pixels.

Orientation: an image is returned as a viewer shows it, with the EXIF orientation applied. If only
the size without that orientation equals the annotated size, the image is returned as stored. So the
boxes always fit the pixels.

Range: pixels are 8 bits. Grey images of floats, or of more than 8 bits, are scaled by the smallest
usual range that holds their largest value (`RANGES`).
"""

import os
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from frcnn.data.problems import Problems
from frcnn.errors import UserError

# In order of preference where files differ in their extension alone.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
RANGES = {1: "0..1", 255: "8 bits", 4095: "12 bits", 65535: "16 bits"}  # by largest value
JPEG_END, TAIL = b"\xff\xd9", 64  # bytes: some cameras write a few more
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


def decode_error(path: Path) -> str:
    """Why an image file cannot be decoded; "" if it can."""
    try:
        with _open_image(path) as picture:
            picture.load()
    except Exception as error:  # decoders raise errors of many types on malformed files
        return _reason(error, path)
    return ""


def broken(path: Path) -> str:
    """Why an image file is not whole; "" if it seems to be.

    This is quick for the usual formats: the end of a JPEG file and the checksums of a PNG file show
    nearly all damage. Other files are decoded.
    """
    try:
        with _open_image(path) as picture:
            if picture.format == "PNG":
                picture.verify()
                return ""
            if picture.format == "JPEG" and _ends_as_jpeg(path):
                return ""
    except Exception as error:  # decoders raise errors of many types on malformed files
        return _reason(error, path)
    return decode_error(path)


def _reason(error: Exception, path: Path) -> str:
    return str(error).replace(f" {str(path)!r}", "") or type(error).__name__


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(TAIL, path.stat().st_size), os.SEEK_END)
        return JPEG_END in file.read()


def unusual_depth(path: Path) -> str:
    """What is unusual in how an image becomes one of 8 bits, as a plural noun phrase; or ""."""
    with _open_image(path) as picture:
        tiles = getattr(picture, "tile", [])  # how Pillow will decode the file
        if picture.mode == "RGB" and any(";16" in str(tile.args) for tile in tiles):
            return "colour images of 16 bits, read without their lower 8"
        if not _is_deep(picture):
            return ""
        usual = 255 if picture.mode == "F" else 65535
        found = _range(np.asarray(picture))
        return "" if found == usual else f"grey images scaled from {RANGES[found]}"


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


def none_found(folder: Path, images: str, first: str | None, problems: Problems) -> str:
    """The message where not one image of a split can be used.

    Args:
        images: what the images are of.
        first: the name of the first file that is missing; None = all files exist.
    """
    text = f"{folder}: contains no readable image of {images}"
    if first is None:
        return f"{text} ({problems.summary()})"
    if not os.path.isdir(folder):
        return f"{text}: there is no such folder"
    hint = ""
    if "\\" in first:
        hint = "; write / instead of \\ in file names"
    elif leaves_folder(first):
        hint = "; file names must lead from this folder downwards, so no absolute path and no .."
    return f"{text}; the first one looked for is {folder / first}{hint}"


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


def _is_deep(picture: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits per pixel."""
    return picture.mode == "F" or picture.mode.startswith("I")


def _range(grey: np.ndarray) -> int:
    """The smallest of `RANGES` that holds the values [H, W].

    Floats may exceed their range, as resampled images do: up to twice of it.
    """
    largest = np.nanmax(grey, initial=0)
    slack = 2 if grey.dtype.kind == "f" else 1
    usual = [top for top in RANGES if top > 1 or slack > 1]
    return next((top for top in usual if largest <= slack * top), usual[-1])


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey values [H, W] of any type as uint8; NaN becomes 0."""
    top = _range(grey)
    if grey.dtype.kind == "f":
        return np.rint(np.nan_to_num(grey.clip(0, top)) * (255 / top)).astype(np.uint8)
    return (grey.clip(0, top).astype(np.uint32) * 256 // (top + 1)).astype(np.uint8)


def _rgb(picture: Image.Image) -> Image.Image:
    if _is_deep(picture):  # convert() would only clip
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # without this step Pillow warns
    return picture.convert("RGB")
