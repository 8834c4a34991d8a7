"""Image files of every kind, and what check_images says of bad ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn.data import check_images, drop_unusable_images
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


def test_images_that_do_not_fit_are_dropped_by_their_headers(voc_folder, save_image):
    """a is no image, b of another size, d is cut off after its header."""
    for number, id in enumerate("abcd"):
        voc_folder.add("train", id, *[("cat", (1, 1, 9 + number, 9))] * number)
    folder = voc_folder.root / "JPEGImages"
    (folder / "a.jpg").write_bytes(b"no image")
    save_image(folder / "b.jpg", 30, 41)
    (folder / "d.jpg").write_bytes((folder / "d.jpg").read_bytes()[:-40])
    data = voc_folder.read()
    assert not data.problems
    with pytest.raises(UserError, match=r"b\.jpg \(image b\): is 30x41 but .* says 40x30"):
        data[1]
    drop_unusable_images(data, "train")
    assert data.image_ids == ["c", "d"] and data.files.tolist() == ["c.jpg", "d.jpg"]
    assert data.offsets.tolist() == [0, 2, 5]
    assert data.boxes[:, 2].tolist() == [11, 11, 12, 12, 12]
    assert data.problems.counts == {
        "unreadable images": 1,
        "images of another size than annotated": 1,
    }
    assert "b.jpg (image b): 30x41, its annotation says 40x30" in data.problems.table()
    image, target = data[0]
    assert image.shape == (3, 30, 40) and len(target["boxes"]) == 2
    check_images(data)
    assert data.problems.counts["images that cannot be decoded"] == 1
    with pytest.raises(UserError, match=r"d\.jpg: cannot be read"):
        data[1]


def test_a_set_of_misfits_alone_is_refused(voc_folder, save_image):
    for id in "ab":
        voc_folder.add("train", id, *[("cat", (1, 1, 9, 9))] * (id == "a"))
    save_image(voc_folder.root / "JPEGImages/a.jpg", 4, 4)
    with pytest.raises(UserError, match=r"no object to train on .*a\.jpg \(image a\): 4x4"):
        drop_unusable_images(voc_folder.read(), "train")
    drop_unusable_images(voc_folder.read(classes=["cat"]), "val")
    save_image(voc_folder.root / "JPEGImages/b.jpg", 4, 4)
    with pytest.raises(UserError, match="no image can be used"):
        drop_unusable_images(voc_folder.read(), "val")
