"""Image files of every kind, and what check_images says of bad ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn.data import Problems, check_images
from frcnn.data.image_files import ImageFiles, header_size
from frcnn.errors import UserError

SIDEWAYS = 6  # EXIF: the stored image is shown turned by a quarter, clockwise


def load(path, width, height):
    return ImageFiles(path.parent, np.array([path.name]), np.array([width]), np.array([height]))(0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(path)
    image = load(path, 6, 4)
    assert image.shape == (3, 4, 6) and image.dtype == torch.uint8 and image.is_contiguous()
    assert (image >= 254).all()


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16)).save(path)
    assert load(path, 4, 1)[0].tolist() == [[0, 1, 128, 255]]


@pytest.fixture
def turned(tmp_path):
    """Stored 6x4 with a white left column; shown 4x6 with a white top row."""
    stored = np.zeros((4, 6, 3), dtype=np.uint8)
    stored[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = SIDEWAYS
    path = tmp_path / "turned.png"
    Image.fromarray(stored).save(path, exif=exif)
    return path


def test_orientation_is_that_of_the_annotation(turned):
    assert header_size(turned) == (4, 6)
    shown = load(turned, 4, 6)
    assert shown.shape == (3, 6, 4) and (shown[:, 0] == 255).all() and (shown[:, 1:] == 0).all()
    stored = load(turned, 6, 4)
    assert stored.shape == (3, 4, 6) and (stored[:, :, 0] == 255).all()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png: cannot be read as an image"):
        load(path, 4, 4)
    assert header_size(path) is None


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be read"):
        load(path, 64, 64)


def test_check_images_finds_what_reading_cannot(voc_folder, save_image):
    for id in "abc":
        voc_folder.add("train", id, ("cat", (1, 1, 9, 9)))
    (voc_folder.root / "JPEGImages/a.jpg").write_bytes(b"no image")
    save_image(voc_folder.root / "JPEGImages/b.jpg", 30, 40)
    data = voc_folder.read()
    assert not data.problems
    problems = Problems()
    check_images(data, problems)
    assert problems.counts == {
        "unreadable images": 1,
        "images of another size than annotated": 1,
    }
    assert "b.jpg: 30x40, its annotation says 40x30" in problems.table()
    with pytest.raises(UserError, match=r"b\.jpg: is 30x40 but its annotation says 40x30"):
        data[1]
    with pytest.raises(UserError, match=r"a\.jpg: cannot be read"):
        data[0]
