"""YOLO data sets: forms of data.yaml, where labels are, and lines that cannot be used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from frcnn.data import yolo
from frcnn.errors import NoSplitError, UserError

Save = Callable[[Path, int, int], None]
BOX = "0 0.5 0.5 0.5 0.4\n"  # of 40x30 pixels: 10 9 30 21
SPLITS = "train: images/train\nval: images/val\n"
NAMES = "names: [cat, dog]\n"


@pytest.fixture
def root(tmp_path: Path, save_image: Save) -> Path:
    """Images a and b of 40x30 in train, c in val, each with a box of class 0."""
    root = tmp_path / "set"
    for name in ("train/a", "train/b", "val/c"):
        save_image(root / f"images/{name}.png", 40, 30)
        label = root / f"labels/{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(BOX)
    (root / "data.yaml").write_text(SPLITS + NAMES)
    return root


def test_boxes_polygons_and_classes_by_hand(root: Path) -> None:
    # A triangle, the corners of a rotated box, class 1 as a float; then an image without objects.
    lines = ["1.0 0.1 0.1 0.5 0.2 0.3 0.6", "0 0.25 0 0.5 0.5 0.25 1 0 0.5", BOX]
    (root / "labels/train/a.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    (root / "labels/train/b.txt").unlink()
    data = yolo("train", root)
    assert data.class_names == ["cat", "dog"] and data.category_ids == [0, 1]
    assert data.image_ids == ["images/train/a.png", "images/train/b.png"]
    assert data.labels.tolist() == [2, 1, 1] and data.offsets.tolist() == [0, 3, 3]
    assert data.boxes.tolist() == [
        pytest.approx([4, 3, 20, 18]),
        pytest.approx([0, 0, 20, 30]),
        pytest.approx([10, 9, 30, 21]),
    ]
    assert not data.problems and data[0][0].shape == (3, 30, 40)


def test_an_empty_label_file_is_an_image_without_objects(root: Path) -> None:
    (root / "labels/train/a.txt").write_text("\n")
    data = yolo("train", root)
    assert data.offsets.tolist() == [0, 0, 1] and not data.problems


@pytest.mark.parametrize(
    ("line", "kind", "dropped"),
    [
        ("2 0.5 0.5 0.5 0.4", "objects of an unknown class", True),
        ("0.5 0.5 0.5 0.5 0.4", "objects of an unknown class", True),
        ("-1 0.5 0.5 0.5 0.4", "objects of an unknown class", True),
        ("cat 0.5 0.5 0.5 0.4", "lines that are no class and box or polygon", True),
        ("0 0.5 0.5 0.5", "lines that are no class and box or polygon", True),
        ("0", "lines that are no class and box or polygon", True),
        ("0 0.5 0.5 0.5 0.4 0.9", "lines that are no class and box or polygon", True),  # a score
        ("0 0.1 0.1 0.5 0.2 0.3 0.6 0.7", "lines that are no class and box or polygon", True),
        ("0 nan 0.5 0.5 0.4", "boxes that are not four finite numbers", True),
        ("0 0.1 0.1 0.5 0.2 0.3 inf", "boxes that are not four finite numbers", True),
        ("0 1e308 0.5 1e308 0.4", "boxes that are not four finite numbers", True),
        ("0 0.5 0.5 0 0.4", "boxes without area", True),
        ("0 0.5 0.5 -0.5 0.4", "boxes without area", True),
        ("0 20 15 20 12", "boxes outside the image", True),  # in pixels
        ("0 0.9 0.5 0.5 0.4", "boxes clipped to the image", False),
    ],
)
def test_lines_that_cannot_be_used_are_counted(
    root: Path, line: str, kind: str, dropped: bool
) -> None:
    (root / "labels/train/a.txt").write_text(f"{BOX}{line}\n")
    data = yolo("train", root)
    assert data.problems.counts == {kind: 1} and len(data.labels) == (2 if dropped else 3)
    assert "labels/train/a.txt line 2" in data.problems.summary()


def test_files_that_cannot_be_used_are_counted(root: Path, save_image: Save) -> None:
    save_image(root / "images/train/a.jpg", 40, 30)
    for name in ("d", "e"):
        save_image(root / f"images/train/{name}.png", 40, 30)
    (root / "images/train/d.png").write_text("no image")
    (root / "labels/train/e.txt").write_bytes(b"\xff\xfe0\x00")
    (root / "labels/train/gone.txt").write_text(BOX)
    (root / "labels/train/classes.txt").write_text("cat\n")
    data = yolo("train", root)
    assert data.files.tolist() == [f"images/train/{name}" for name in ("a.jpg", "a.png", "b.png")]
    assert data.problems.counts == {
        "images that share a label file": 1,
        "label files without an image": 1,
        "unreadable images": 1,
        "images with an unreadable label file": 1,
    }


@pytest.mark.parametrize(
    "text",
    [
        SPLITS + "names:\n  1: dog\n  0: cat\n",
        "train: ../images/train\nval: ../images/val\n" + NAMES,  # Roboflow
        "train: images/train/\nvalid: images\\val\n" + NAMES,
        "path: ../datasets/set\n" + SPLITS + NAMES,  # Ultralytics: another folder
        "path: /content/set\ntrain: /content/set/images/train\nval: images/val\n" + NAMES,
        "path: .\ntrain: train.txt\nval: [images/val]\n" + NAMES,
        "path: images\ntrain: train\nval: [val, val]\n" + NAMES,
        "path: {root}\ntrain: {root}/images/train\nval: {root}/val.txt\n" + NAMES,
        "\ufeff" + (SPLITS + NAMES).replace("\n", "\r\n"),
    ],
)
def test_forms_of_data_yaml_are_the_same_data(root: Path, text: str) -> None:
    """Lists name files relative to root, to themselves, or absolute; one file twice."""
    (root / "data.yaml").write_bytes(text.replace("{root}", str(root)).encode())
    lines = ["images/train/a.png", "./images/train/b.png", "data/images/train/b.png", ""]
    (root / "train.txt").write_text("\r\n".join(lines))
    (root / "val.txt").write_text(f"{root}/images/val/c.png\nimages/val/gone.png\n")
    train, val = (yolo(split, root) for split in ("train", "val"))
    assert train.image_ids == ["images/train/a.png", "images/train/b.png"]
    assert val.image_ids == ["images/val/c.png"] and val.labels.tolist() == [1]
    assert train.class_names == val.class_names == ["cat", "dog"]
    repeated = {"images listed more than once": 1}
    assert train.problems.counts == (repeated if "train.txt" in text else {})
    missing = {"images missing in the folder": 1} if "val.txt" in text else {}
    assert val.problems.counts == (repeated if "[val, val]" in text else missing)


def test_nothing_outside_of_the_root_is_read(root: Path, save_image: Save) -> None:
    """Neither a folder, nor a list, nor a listed image; a folder inside with its name is read."""
    outside = root.parent / "images/train"
    save_image(outside / "secret.png", 40, 30)
    (root / "data.yaml").write_text(f"train: ../images/train\nval: {outside}\n{NAMES}")
    assert yolo("train", root).image_ids == ["images/train/a.png", "images/train/b.png"]
    with pytest.raises(UserError, match="is no folder or file below"):
        yolo("val", root)
    (root / "train.txt").write_text(f"{outside}/secret.png\n../images/train/secret.png\n")
    (root / "data.yaml").write_text(f"train: train.txt\n{NAMES}")
    with pytest.raises(UserError, match=r"train.txt: none of its 2 images is below .+ \(first: "):
        yolo("train", root)


def test_keypoints_are_no_polygon(root: Path) -> None:
    (root / "data.yaml").write_text(f"{SPLITS}{NAMES}kpt_shape: [2, 2]\n")
    (root / "labels/train/a.txt").write_text(f"{BOX.strip()} 0.1 0.1 0.9 0.9\n{BOX}")
    data = yolo("train", root)
    assert data.boxes.tolist() == [pytest.approx([10, 9, 30, 21])]
    assert data.problems.counts == {"lines that are no class and box or polygon": 2}


def test_names_may_repeat_and_leave_numbers_out(root: Path) -> None:
    (root / "data.yaml").write_text(SPLITS + "names: {0: cat, 2: cat, 7: 3}\n")
    (root / "labels/train/a.txt").write_text(BOX.replace("0", "7", 1) + BOX.replace("0", "1", 1))
    data = yolo("train", root)
    assert data.class_names == ["cat (id 0)", "cat (id 2)", "3"] and data.labels.tolist() == [3, 1]
    assert data.category_ids == [0, 2, 7]
    assert data.problems.counts == {"objects of an unknown class": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("names: [cat\n", "is not YAML"),
        ("- 1\n", "has no names"),
        (SPLITS, "names must be a list"),
        (SPLITS + "names: [yes, no]\n", "names: True is not text; put it in quotes"),
        (SPLITS + "names: {a: cat}\n", "a key is not a number"),
        (SPLITS + "names: [[cat]]\n", "is not text"),
        ("train: 3\n" + NAMES, "train must be a folder, a list of folders, or a .txt file"),
        ("train: none\n" + NAMES, "data.yaml: 'none' is no folder or file below"),
        ("train: labels\n" + NAMES, "has no image (.jpg"),
        (NAMES, "data.yaml: has no train split; data.val_fraction=0.2 cuts one"),
        (SPLITS + NAMES + "kpt_shape: 3\n", "kpt_shape must be two numbers"),
        ("names: " + "[" * 1000, "is not YAML"),
        (f"train: {'x' * 5000}\n" + NAMES, "is no folder or file below"),
        ('train: "a\\0"\n' + NAMES, "is no folder or file below"),
    ],
)
def test_a_data_yaml_that_cannot_be_used_is_one_line(root: Path, text: str, says: str) -> None:
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        yolo("train", root)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_description_is_found_or_named(root: Path) -> None:
    (root / "data.yaml").rename(root / "cats.yml")
    assert len(yolo("val", root)) == 1
    (root / "dogs.yaml").write_text("train: images/val\n" + NAMES)
    with pytest.raises(UserError, match=r"has cats.yml, dogs.yaml; choose one with data.yaml=FILE"):
        yolo("val", root)
    assert len(yolo("train", root, yaml="dogs.yaml")) == 1
    with pytest.raises(UserError, match="is no YOLO data set; looked for data.yaml"):
        yolo("train", root / "images")


def test_a_split_without_any_label_file_is_refused(root: Path) -> None:
    (root / "labels").rename(root / "annotations")
    with pytest.raises(UserError, match="labels/train/a.txt and images/train/a.txt"):
        yolo("train", root)


def test_training_without_an_object_is_refused(root: Path) -> None:
    for name in "ab":
        (root / f"labels/train/{name}.txt").write_text("")
    with pytest.raises(UserError, match="has no object to train on"):
        yolo("train", root)


def test_the_test_split_is_read_for_folds_alone(root: Path) -> None:
    with pytest.raises(NoSplitError, match="has no test split"):
        yolo("test", root)
    (root / "data.yaml").write_text("train: images/train\ntest: images/val\n" + NAMES)
    assert len(yolo("test", root)) == 1
    with pytest.raises(NoSplitError, match="has no test split"):
        yolo("test", root, test_split=None)
