"""Image files of every kind: the right pixels, or one line that names the file."""

import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from outcomes import refused
from PIL import Image
from small import quick

from frcnn.data import transforms
from frcnn.data.image_files import ImageFiles, header_sizes

GREY = (100, 100, 100)


def load(path: Path, width: int = 6, height: int = 4) -> torch.Tensor:
    return ImageFiles(path.parent, np.array([path.name]), np.array([width]), np.array([height]))(0)


def plain(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, GREY).convert(mode)


def palette_with_transparency(path: Path) -> None:
    plain("P").save(path, transparency=b"\x00\x80")


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.full((4, 6), 100 * 256 + 7, dtype=np.uint16)).save(path)


def animated(path: Path) -> None:
    later = Image.new("RGB", (6, 4), (255, 0, 0))
    plain().save(path, save_all=True, append_images=[later, later])


def with_orientation(value: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = value
        plain().save(path, exif=exif)

    return write


def saved(mode: str) -> Callable[[Path], None]:
    return lambda path: plain(mode).save(path)


READ = {
    "rgb.png": saved("RGB"), "rgba.png": saved("RGBA"), "grey.png": saved("L"),
    "grey-alpha.png": saved("LA"), "palette.png": saved("P"), "palette.gif": saved("P"),
    "cmyk.jpg": saved("CMYK"), "cmyk.tif": saved("CMYK"), "ycbcr.tif": saved("YCbCr"),
    "grey.jpg": saved("L"), "float.tif": saved("F"), "rgb.webp": saved("RGB"),
    "rgb.bmp": saved("RGB"), "rgb.ppm": saved("RGB"),
    "transparent-palette.png": palette_with_transparency, "16-bit.png": sixteen_bit,
    "16-bit.tif": sixteen_bit, "animated.gif": animated, "pages.tif": animated,
    "animated.webp": animated, "animated.png": animated,
    "orientation-0.png": with_orientation(0), "orientation-3.png": with_orientation(3),
    "orientation-9.png": with_orientation(9), "orientation-60000.png": with_orientation(60000),
    "png-named.jpg": lambda path: plain().save(path, format="PNG"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write"), READ.items(), ids=READ)
def test_grey_is_grey_however_it_is_stored(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    image = load(tmp_path / name)
    assert image.shape == (3, 4, 6) and image.dtype == torch.uint8
    assert (image.int() - 100).abs().max() <= 3  # JPEG's and WebP's loss
    assert (6, 4) in header_sizes(tmp_path / name)


@pytest.mark.parametrize("value", [5, 6, 7, 8])
def test_a_photo_taken_sideways_is_shown_upright(tmp_path: Path, value: int) -> None:
    with_orientation(value)(tmp_path / "a.jpg")
    assert header_sizes(tmp_path / "a.jpg") == [(4, 6), (6, 4)]
    assert load(tmp_path / "a.jpg", 4, 6).shape == (3, 6, 4)
    assert load(tmp_path / "a.jpg", 6, 4).shape == (3, 4, 6)


def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + check


def png_of(width: int, height: int) -> bytes:
    """A whole header, and pixels for none of it."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + b"\x08\x02\0\0\0")
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def text_bomb(path: Path) -> None:
    whole = png_of(6, 4)
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10**8))
    path.write_bytes(whole[:33] + bomb + whole[33:])


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


REFUSED = {
    "empty.jpg": holding(b""), "text.jpg": holding(b"hello\n"), "zeros.png": holding(b"\0" * 999),
    "html.jpg": holding(b"<html>404</html>"), "signature.jpg": holding(b"\xff\xd8\xff\xe0"),
    "cut-header.jpg": cut(0.02), "cut-pixels.jpg": cut(0.5), "cut-pixels.png": cut(0.5),
    "cut-end.tif": cut(0.99), "cut-pixels.webp": cut(0.5), "cut-pixels.gif": cut(0.5),
    "folder.jpg": Path.mkdir, "pipe.jpg": os.mkfifo,
    "dangling.jpg": lambda path: path.symlink_to("nowhere"),
    "loop.jpg": lambda path: path.symlink_to(path),
    "device.jpg": lambda path: path.symlink_to("/dev/zero"),
    "bomb.png": holding(png_of(50_000, 50_000)), "text-bomb.png": text_bomb,
    "no-pixels.png": holding(png_of(6, 4)), "no-area.png": holding(png_of(0, 4)),
    "svg.jpg": holding(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_image_is_one_line_with_its_name(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    line = refused(load, tmp_path / name)
    assert re.search(rf"/{re.escape(name)}: cannot be read as an image \(.+\)", line), line


def test_every_byte_of_a_file_may_be_wrong(tmp_path: Path) -> None:
    """Whatever the decoders raise, and on whatever file: an image or one line."""
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp"):
        path = tmp_path / f"a.{suffix}"
        plain(size=(16, 12)).save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
            path.write_bytes(broken.tobytes())
            sizes = header_sizes(path)
            if not sizes or sizes[0] != (16, 12):
                continue
            try:
                assert load(path, 16, 12).shape == (3, 12, 16)
            except Exception as error:
                assert "cannot be read" in refused(load, path, 16, 12), error


SHAPES = {
    "1x1": (1, 1), "1x7": (1, 7), "20000-wide": (1, 20_000), "20000-wide-10-high": (10, 20_000),
    "20000-high": (20_000, 1), "2x3000": (2, 3000), "128x1": (128, 1),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_network_takes_images_of_any_shape(shape: tuple[int, int]) -> None:
    """Resized to at most 128 pixels a side, a strip this thin would have no pixel left."""
    height, width = shape
    model = quick()
    whole = torch.tensor([[0.0, 0.0, width, height]])
    target = {"boxes": whole, "labels": torch.tensor([1]), "ignore": whole[:0]}
    losses = model([torch.rand(3, height, width)], [target])
    assert all(loss.isfinite() for loss in losses.values())
    resized = model.transform.resize(torch.rand(3, height, width), dict(target))
    assert resized[1]["boxes"].tolist() == [[0, 0, *resized[0].shape[:0:-1]]]
    with torch.inference_mode():
        (found,) = model.eval()([torch.rand(3, height, width)])
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= whole[0, 2:].repeat(2)).all()


@pytest.mark.parametrize("preset", ["none", "flip", "flip_color", "scale_jitter"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 40), (40, 1), (3, 2)], ids=str)
def test_augmentation_takes_images_of_any_shape(preset: str, shape: tuple[int, int]) -> None:
    transform = getattr(transforms, preset)() or (lambda *sample: sample)
    box = torch.tensor([[0.0, 0.0, shape[1], shape[0]]])
    for seed in range(20):
        torch.manual_seed(seed)
        target = {
            "boxes": box,
            "labels": torch.tensor([1]),
            "ignore": box,
            "image_id": 0,
            "seed": 0,
        }
        image, target = transform(torch.zeros(3, *shape, dtype=torch.uint8), target)
        assert min(image.shape) > 0 and target["boxes"].isfinite().all()
