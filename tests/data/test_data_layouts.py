"""Folders in the layouts that data sets and annotation tools are known to have."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import call

from frcnn import check_data
from frcnn.build import annotated
from frcnn.data import coco, roboflow, voc, yolo
from frcnn.errors import ConfigError, NoSplitError, UserError

Save = Callable[[Path, int, int], None]
LINE = "1 0.5 0.5 0.5 0.4\n"  # the same as BBOX in 40x30 pixels
BBOX = [10, 9, 20, 12]
XYXY = [10, 9, 30, 21]


def write_coco(path: Path, files: list[str], **more: Any) -> None:
    """COCO annotations with a dog, category 2, in each image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(files)
    ]
    rows = [{"id": n + 1, "image_id": n, "category_id": 2, "bbox": BBOX} for n in range(len(files))]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path.write_text(
        json.dumps({"images": images, "annotations": rows, "categories": categories} | more)
    )


def cvat_coco(root: Path) -> list[str]:
    """CVAT's "COCO 1.0"."""
    info = {"contributor": "", "date_created": "", "url": "", "version": "", "year": ""}
    more = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": info}
    write_coco(root / "annotations/instances_default.json", ["a.png", "sub/b.png"], **more)
    return ["images/a.png", "images/sub/b.png"]


def cvat_coco_subset(root: Path) -> list[str]:
    """The same as newer versions write it, with the subset's folder."""
    cvat_coco(root)
    return ["images/default/a.png", "images/default/sub/b.png"]


def cvat_yolo(root: Path) -> list[str]:
    """CVAT's "YOLO 1.1"."""
    (root / "obj_train_data").mkdir(parents=True)
    (root / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    (root / "obj.names").write_text("cat\ndog\n")
    files = ["obj_train_data/a.png", "obj_train_data/b.png"]
    (root / "train.txt").write_text("".join(f"data/{file}\n" for file in files))
    for name in "ab":
        (root / f"obj_train_data/{name}.txt").write_text(LINE)
    return files


def cvat_ultralytics(root: Path) -> list[str]:
    """CVAT's "Ultralytics YOLO Detection"."""
    (root / "labels/train").mkdir(parents=True)
    (root / "data.yaml").write_text("names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")
    files = ["images/train/a.png", "images/train/b.png"]
    (root / "train.txt").write_text("\n".join(files))
    for name in "ab":
        (root / f"labels/train/{name}.txt").write_text(LINE)
    return files


def label_studio_coco(root: Path) -> list[str]:
    """Label Studio's "COCO"."""
    write_coco(root / "result.json", ["images/0a1b-a.png", "images/2c3d-b.png"])
    return ["images/0a1b-a.png", "images/2c3d-b.png"]


def label_studio_server_paths(root: Path) -> list[str]:
    """The same with the paths of Label Studio 1.16 (its issue 7294), one of them of Windows."""
    upload = "../../label-studio/data/media/upload/4/0a1b-a.png"
    windows = "..\\..\\label-studio\\media\\upload\\4\\2c3d-b.png"
    write_coco(root / "result.json", [upload, windows])
    return ["images/0a1b-a.png", "images/2c3d-b.png"]


def label_studio_windows(root: Path) -> list[str]:
    """The same with the separators of Windows."""
    write_coco(root / "result.json", ["images\\a.png", "images\\b.png"])
    return ["images/a.png", "images/b.png"]


def label_studio_yolo(root: Path) -> list[str]:
    """Label Studio's "YOLO"."""
    (root / "labels").mkdir(parents=True)
    (root / "classes.txt").write_text("cat\ndog")
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    notes = {"categories": categories, "info": {"year": 2024, "contributor": "Label Studio"}}
    (root / "notes.json").write_text(json.dumps(notes))
    for name in "ab":
        (root / f"labels/{name}.txt").write_text(LINE)
    return ["images/a.png", "images/b.png"]


COCO_EXPORTS = [
    *(cvat_coco, cvat_coco_subset),
    *(label_studio_coco, label_studio_server_paths, label_studio_windows),
]
YOLO_EXPORTS = [cvat_yolo, cvat_ultralytics, label_studio_yolo]


@pytest.mark.parametrize("export", [*COCO_EXPORTS, *YOLO_EXPORTS], ids=lambda e: e.__name__)
def test_exports_of_cvat_and_label_studio_are_read_and_split(
    tmp_path: Path, save_image: Save, export: Callable[[Path], list[str]]
) -> None:
    for file in export(tmp_path):
        save_image(tmp_path / file, 40, 30)
    name = "coco" if export in COCO_EXPORTS else "yolo"
    reader = {"coco": coco, "yolo": yolo}[name]
    data = reader("train", root=tmp_path)
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [2, 2]
    assert data.boxes.tolist() == [pytest.approx(XYXY)] * 2 and not data.problems
    assert data[0][0].shape == data[1][0].shape == (3, 30, 40)
    for split in ("val", "test"):
        with pytest.raises(NoSplitError, match=f"has no {split} split; data.val_fraction=0.2"):
            reader(split, root=tmp_path)
    node = {"_target_": f"frcnn.data.{name}", "_partial_": True, "root": str(tmp_path)}
    node |= {"coco": {"test_images": None}, "yolo": {"test_split": "test"}}[name]
    for cut in ({"val_fraction": 0.5}, {"folds": 2, "fold": 1}):
        parts = [annotated(node | cut, split).image_ids for split in ("train", "val")]
        assert [len(part) for part in parts] == [1, 1]
        assert sorted([*parts[0], *parts[1]], key=str) == sorted(data.image_ids, key=str)


def test_check_data_counts_an_export_that_it_splits(
    tmp_path: Path, save_image: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in label_studio_yolo(tmp_path):
        save_image(tmp_path / file, 40, 30)
    options = ["data=yolo", f"data.root={tmp_path}"]
    assert call(check_data.main, *options, "data.val_fraction=0.5") == 0
    said = "".join(capsys.readouterr())
    assert "train: 1 images" in said and "val: 1 images" in said
    assert call(check_data.main, *options) == 1
    assert "has no val split; data.val_fraction=0.2 cuts one" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}2017.json", "images/{}2017"),
        ("annotations/instances_{}.json", "images"),
        ("annotations/{}.json", "images/{}"),
        ("annotations/{}.json", "{}"),
        ("{}.json", "images"),
        ("{}.json", "."),
        ("{}/annotations.json", "{}"),
        ("{}/annotations.json", "{}/images"),
    ],
)
def test_layouts_of_coco(tmp_path: Path, save_image: Save, annotations: str, images: str) -> None:
    for split in ("train", "val", "test"):
        write_coco(tmp_path / annotations.format(split), [f"{split}.png"])
        save_image(tmp_path / images.format(split) / f"{split}.png", 40, 30)
    for split in ("train", "val", "test"):
        data = coco(split, root=tmp_path)
        assert data.files.tolist() == [f"{split}.png"] and not data.problems
        assert data.load(0).shape == (3, 30, 40)


def test_layouts_of_coco_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looked for annotations/instances_train.json, .+ or give"):
        coco("val", root=tmp_path)
    write_coco(tmp_path / "annotations/instances_train.json", ["a.png"])
    with pytest.raises(UserError, match=r"none of the 1 images was found \(first: a.png\); looked"):
        coco("train", root=tmp_path)
    write_coco(tmp_path / "annotations/instances_train2014.json", ["a.png"])
    says = "annotations/instances_train.json, annotations/instances_train2014.json may all be"
    with pytest.raises(UserError, match=says):
        coco("train", root=tmp_path)
    with pytest.raises(ConfigError, match="set it alone, or the other paths"):
        coco("train", root=tmp_path, val_images=tmp_path)
    with pytest.raises(ConfigError, match="needs data.train_images and data.train_annotations, or"):
        coco("val", val_images=tmp_path, val_annotations=tmp_path / "a.json")


def test_an_export_of_roboflow_is_read_by_its_own_reader(tmp_path: Path, save_image: Save) -> None:
    """Without a split, all of it is for training."""
    write_coco(tmp_path / "_annotations.coco.json", ["a.png"])
    save_image(tmp_path / "a.png", 40, 30)
    with pytest.raises(UserError, match="is an export of Roboflow; read it with data=roboflow"):
        coco("train", root=tmp_path)
    assert roboflow("train", tmp_path).files.tolist() == ["a.png"]
    with pytest.raises(NoSplitError, match="has no valid split"):
        roboflow("val", tmp_path)
    with pytest.raises(UserError, match=r"train/_annotations.coco.json: cannot be read"):
        roboflow("val", tmp_path / "none")


@pytest.mark.parametrize("place", ["VOC2007", "VOCdevkit/VOC2007", "mine"])
def test_a_folder_that_holds_a_voc_folder(
    voc_folder: Any, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        voc_folder.add(split, split, ("cat", (1, 1, 9, 9)))
    above = voc_folder.root.parent / "above"
    (above / place).parent.mkdir(parents=True)
    voc_folder.root.rename(above / place)
    with caplog.at_level(logging.INFO):
        assert voc("val", above).image_ids == ["val"]
    assert f"{above}: reading {place}" in caplog.text
    for part in ("Annotations", "JPEGImages"):
        (above / "VOCdevkit/VOC2012" / part).mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds several VOC folders \(.*VOC2012.*\); name one"):
        voc("val", above)
