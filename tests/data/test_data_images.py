"""Image files of every kind, and what check_images says of bad ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn.data import (
    check_images,
    count_copies,
    count_shared_images,
    drop_unusable_images,
    unlisted_files,
)
from frcnn.data.image_files import ImageFiles, broken, header_size, unusual_depth
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


@pytest.mark.parametrize(
    ("values", "kind", "expected", "note"),
    [
        ([0, 0.5, 1], np.float32, [0, 128, 255], "grey images scaled from 0..1"),
        ([0, 0.5, 1.01], np.float32, [0, 128, 255], "grey images scaled from 0..1"),
        ([0, 100, 260], np.float32, [0, 100, 255], ""),
        ([0, 32768, 65535], np.float32, [0, 128, 255], "grey images scaled from 16 bits"),
        ([-1, np.nan, 200], np.float32, [0, 0, 200], ""),
        ([0, 2048, 4095], np.uint16, [0, 128, 255], "grey images scaled from 12 bits"),
        ([0, 100, 255], np.uint16, [0, 100, 255], "grey images scaled from 8 bits"),
        ([0, 100, 255], np.int32, [0, 100, 255], "grey images scaled from 8 bits"),
        ([0, 32768, 65535], np.uint16, [0, 128, 255], ""),
    ],
)
def test_grey_of_any_depth_keeps_its_range(tmp_path, values, kind, expected, note):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([values], dtype=kind)).save(path)
    assert load(path, 3, 1)[0].tolist() == [expected]
    assert unusual_depth(path) == note


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif"])
def test_a_file_that_is_cut_off_is_found_without_decoding_all(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    assert not broken(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert broken(path) and "a." not in broken(path)


def test_too_many_pixels_are_the_reason(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert "decompression bomb" in broken(tmp_path / "a.png")


def test_shared_files_copies_and_files_of_no_split_are_found(voc_folder):
    """b is in both splits, c a copy of a, d in none."""
    for split, id in (("train", "a"), ("train", "b"), ("val", "b"), ("val", "c"), ("none", "d")):
        voc_folder.add(split, id, ("cat", (1, 1, 9, 9)))
    folder = voc_folder.root / "JPEGImages"
    Image.new("RGB", (40, 30)).save(folder / "b.jpg", quality=20)
    train, val = voc_folder.read("train"), voc_folder.read("val")
    count_shared_images(train, val)
    assert val.problems.summary() == (
        "kept 1 images that the training split has too (first: b.jpg (image id b))"
    )
    count_copies([train, val])
    assert val.problems.counts["copies of another image file"] == 1 and not train.problems
    assert "c.jpg (image id c) is a.jpg" in val.problems.table()
    assert unlisted_files([train, val]) == [str(folder / "d.jpg")]


def test_a_link_to_a_file_that_is_gone_is_no_copy(voc_folder):
    for id in "ab":
        voc_folder.add("train", id, ("cat", (1, 1, 9, 9)))
    gone = voc_folder.root / "JPEGImages/b.jpg"
    gone.unlink()
    gone.symlink_to("elsewhere.jpg")
    train = voc_folder.read("train")
    count_copies([train])
    assert not train.problems


def save_without_pixels(path):
    """A JPEG file of 40x30 with its end, but without a scan."""
    Image.new("RGB", (40, 30)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\xff\xda")] + b"\xff\xd9")


def test_images_that_do_not_fit_are_dropped_by_their_headers(voc_folder, save_image):
    """a is no image, b of another size, d has no pixels, e is cut off."""
    for number, id in enumerate("abcde"):
        objects = [("cat", (1, 1, 9 + number, 9 + k)) for k in range(number)]
        voc_folder.add("train", id, *objects)
    folder = voc_folder.root / "JPEGImages"
    (folder / "a.jpg").write_bytes(b"no image")
    save_image(folder / "b.jpg", 30, 41)
    save_without_pixels(folder / "d.jpg")
    (folder / "e.jpg").write_bytes((folder / "e.jpg").read_bytes()[:-40])
    data = voc_folder.read()
    assert not data.problems
    with pytest.raises(UserError, match=r"b\.jpg \(image b\): is 30x41 but .* says 40x30"):
        data[1]
    drop_unusable_images(data, "train")
    assert data.image_ids == ["c", "d"] and data.files.tolist() == ["c.jpg", "d.jpg"]
    assert data.offsets.tolist() == [0, 2, 5]
    assert data.boxes[:, 2].tolist() == [11, 11, 12, 12, 12]
    assert data.problems.counts == {
        "unreadable images": 2,
        "images of another size than annotated": 1,
    }
    assert "a.jpg (image a): cannot identify image file\n" in data.problems.table()
    assert "b.jpg (image b): 30x41, its annotation says 40x30" in data.problems.table()
    image, target = data[0]
    assert image.shape == (3, 30, 40) and len(target["boxes"]) == 2
    with pytest.raises(UserError, match=r"1 images cannot be decoded .first: .*d\.jpg: cannot be"):
        check_images(data, "train")
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
