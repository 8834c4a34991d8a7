"""Splits that are cut here: disjoint, whole, the same for every run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import call

from frcnn import check_data
from frcnn.build import annotated, dataset
from frcnn.data import DetectionDataset, roboflow
from frcnn.data.folds import fold_numbers, in_fraction
from frcnn.errors import ConfigError, UserError
from frcnn.evaluation.load import checkpoint_data

BOX = (1, 1, 10, 10)


def node(root: Path, **more: Any) -> dict[str, Any]:
    splits = {"train_split": "train", "val_split": "val", "test_split": "test"}
    reader = {"_target_": "frcnn.data.voc", "_partial_": True, "root": str(root), **splits}
    return reader | {"folds": 3, "fold": 0, "split_seed": 0, "split_block": 1} | more


@pytest.fixture
def folder(voc_folder):
    """Three splits of four images; "val" lists an image of "train" again."""
    for number in range(12):
        name = "cat" if number % 2 else "dog"
        split = ("train", "val", "test")[number // 4]
        voc_folder.add(split, f"i{number:02d}", (name, BOX), ("cat", BOX))
    with open(voc_folder.root / "ImageSets/Main/val.txt", "a") as file:
        file.write("i00\n")
    return voc_folder.root


def files(data: DetectionDataset) -> set[str]:
    return set(data.files.tolist())


def test_folds_share_no_image_and_cover_all(folder: Path) -> None:
    everything = {f"i{number:02d}.jpg" for number in range(12)}
    held = []
    for fold in range(3):
        train, val = (dataset(node(folder, fold=fold), split) for split in ("train", "val"))
        assert files(train) | files(val) == everything and not files(train) & files(val)
        assert (len(train), len(val)) == (8, 4)
        assert train.class_names == val.class_names == ["cat", "dog"]
        held.append(files(val))
    assert set.union(*held) == everything and sum(map(len, held)) == 12


def test_an_image_keeps_its_objects_and_pixels(folder: Path) -> None:
    for split in ("train", "val"):
        data = dataset(node(folder, fold=1), split)
        for index, id in enumerate(data.image_ids):
            image, target = data[index]
            first = 1 if int(id[1:]) % 2 else 2
            assert image.shape == (3, 30, 40) and target["labels"].tolist() == [first, 1]
            assert data.files[index] == f"{id}.jpg"


def test_the_seed_and_nothing_else_changes_the_folds(folder: Path) -> None:
    first, again, other = (
        files(annotated(node(folder, split_seed=seed), "val")) for seed in (0, 0, 1)
    )
    assert first == again != other
    swapped = node(folder, train_split="test", test_split="train")
    assert files(annotated(swapped, "val")) == first


@given(st.integers(2, 6), st.integers(0, 5), st.integers(1, 7), st.integers(42, 90))
def test_blocks_of_neighbours_stay_whole_and_folds_differ_by_one_block(
    folds: int, seed: int, block: int, images: int
) -> None:
    names = [f"{number:03d}.jpg" for number in range(images)]
    found = fold_numbers(names, folds, seed, block)
    for first in range(0, images, block):
        assert len(set(found[first : first + block].tolist())) == 1
    blocks = np.bincount(found[::block], minlength=folds)
    assert blocks.max() - blocks.min() <= 1
    order = np.random.default_rng(seed).permutation(images)
    mixed = fold_numbers([f"folder/{names[row]}" for row in order], folds, seed, block)
    assert mixed.tolist() == found[order].tolist()


def test_folds_by_hand() -> None:
    # Sorted by name: a b | c d. Two blocks, one for each fold.
    found = fold_numbers(["d", "x/b", "a", "c"], folds=2, block=2).tolist()
    assert found in ([0, 1, 1, 0], [1, 0, 0, 1])


def fraction(root: Path, **more: Any) -> dict[str, Any]:
    return node(root, folds=None, fold=None) | {"val_fraction": 0.5} | more


def test_a_fraction_of_the_training_images_is_validation(folder: Path) -> None:
    """The images of the other splits are neither; the seed and the fraction alone decide."""
    train, val, again = (
        files(dataset(fraction(folder, val_split=None), split)) for split in ("train", "val", "val")
    )
    assert not train & val and val == again and (len(train), len(val)) == (2, 2)
    assert train | val == {f"i{number:02d}.jpg" for number in range(4)}
    seeds = [files(annotated(fraction(folder, split_seed=seed), "val")) for seed in range(4)]
    assert any(other != val for other in seeds)
    larger = files(annotated(fraction(folder, val_fraction=0.75), "val"))
    assert val < larger and len(larger) == 3


@pytest.mark.parametrize("cut", [{}, {"folds": None, "fold": None, "val_fraction": 0.5}])
def test_a_checkpoint_has_the_images_of_its_run(folder: Path, cut: dict[str, Any]) -> None:
    data = node(folder, split_seed=3, **cut)
    trained = SimpleNamespace(config={"data": data})
    for split in ("train", "val"):
        of_run = files(dataset(data, split))
        assert files(checkpoint_data(trained, "best.pt", split)) == of_run


def test_neighbours_of_a_fraction_stay_together(folder: Path) -> None:
    val = files(annotated(fraction(folder, split_block=2), "val"))
    assert val in ({"i00.jpg", "i01.jpg"}, {"i02.jpg", "i03.jpg"})


@given(st.floats(0.2, 0.8), st.integers(0, 5), st.integers(1, 7), st.integers(42, 90))
def test_a_fraction_is_whole_blocks_whatever_the_order(
    share: float, seed: int, block: int, images: int
) -> None:
    names = [f"{number:03d}.jpg" for number in range(images)]
    found = in_fraction(names, share, seed, block)
    assert found[::block].sum() == round(share * -(-images // block))
    for first in range(0, images, block):
        assert len(set(found[first : first + block].tolist())) == 1
    assert in_fraction(names[::-1], share, seed, block).tolist() == found[::-1].tolist()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"val_fraction": 0.2}, "data.val_fraction and data.folds are two ways to cut: choose one"),
        ({"val_fraction": 0.1, "folds": None, "fold": None}, "data.val_fraction: 0.1 of 4 images"),
        ({"val_fraction": 1, "folds": None, "fold": None}, "data.val_fraction: 1 of 4 images in "),
        ({"fold": None}, "data.folds=3 needs data.fold too"),
        ({"folds": None}, "data.fold=0 needs data.folds too"),
        ({"fold": 3}, "data.fold: expected 0 to 2 of data.folds=3, got 3"),
        ({"split_block": 5, "folds": 4}, "data.folds: 4 folds of 12 images in blocks of 5: there"),
    ],
)
def test_values_that_do_not_fit_are_one_line(
    folder: Path, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{says}"):
        annotated(node(folder, **values), "val")


def test_without_folds_the_splits_are_as_they_are(folder: Path) -> None:
    plain = node(folder, folds=None, fold=None)
    assert files(annotated(plain, "val")) == {f"i{n:02d}.jpg" for n in (4, 5, 6, 7, 0)}


def test_training_without_objects_and_images_without_files_are_refused(voc_folder) -> None:
    voc_folder.add("train", "a", ("cat", BOX))
    voc_folder.add("val", "b")
    options = {"test_split": None, "folds": 2, "classes": ["cat"]}
    empty = [files(annotated(node(voc_folder.root, fold=0, **options), "val")) == {"a.jpg"}]
    with pytest.raises(UserError, match="has no object to train on"):
        annotated(node(voc_folder.root, fold=0 if empty[0] else 1, **options), "train")
    drawn = {"_target_": "frcnn.data.shapes", "_partial_": True, "folds": 2, "fold": 0}
    with pytest.raises(UserError, match="images are not files"):
        annotated(drawn, "train")


def test_check_data_counts_a_fold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [f"{k}={v}" for k, v in node(folder).items() if not k.startswith("_")]
    assert call(check_data.main, "data=voc", *(f"data.{text}" for text in line)) == 0
    said = "".join(capsys.readouterr())
    assert "train: 8 images" in said and "val: 4 images" in said


@pytest.fixture
def export(tmp_path: Path, save_image) -> Path:
    """Roboflow's three folders; each counts its ids from 0, and knows a cat and a dog."""
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    for split in ("train", "valid", "test"):
        images = [
            {"id": n, "file_name": f"{split}{n}.jpg", "width": 40, "height": 30} for n in range(2)
        ]
        rows = [
            {"id": n + 1, "image_id": n, "category_id": n + 1, "bbox": [0, 0, 9, 9]}
            for n in range(2)
        ]
        for image in images:
            save_image(tmp_path / split / image["file_name"], 40, 30)
        content = {"images": images, "annotations": rows, "categories": categories}
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    return tmp_path


def test_roboflow_s_placeholder_is_no_class(export: Path) -> None:
    for split in ("train", "val", "test"):
        data = roboflow(split, export)
        assert (data.class_names, data.category_ids) == (["cat", "dog"], [1, 2])
        assert data.labels.tolist() == [1, 2] and not data.problems
    only = roboflow("val", export, classes=["dog"])
    assert only.labels.tolist() == [1] and only.category_ids == [2]
    assert only.problems.counts == {"objects of an unknown class": 1}
    with pytest.raises(ConfigError, match="^data.classes: 'cow' is none of pets, cat, dog"):
        roboflow("train", export, classes=["cow"])


def test_roboflow_s_placeholder_with_objects_is_a_class(export: Path) -> None:
    file = export / "train/_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    data = roboflow("train", export)
    assert data.class_names == ["pets", "cat", "dog"] and data.labels.tolist() == [1, 3]


def test_a_class_that_a_split_lacks_takes_no_other_class_s_id(export: Path) -> None:
    file = export / "valid/_annotations.coco.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 2, "name": "cat", "supercategory": "pets"}]
    file.write_text(json.dumps(content))
    data = roboflow("val", export)
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [1]


def test_folds_pool_the_splits_that_an_export_has(export: Path) -> None:
    shutil.rmtree(export / "test")
    reader = {"_target_": "frcnn.data.roboflow", "_partial_": True, "root": str(export)}
    cut = {"test_split": "test", "folds": 2, "fold": 0}
    assert [len(annotated(reader | cut, split)) for split in ("train", "val")] == [2, 2]


def test_folds_of_several_folders_have_ids_of_their_own(export: Path) -> None:
    reader = {"_target_": "frcnn.data.roboflow", "_partial_": True, "root": str(export)}
    held = [
        dataset({**reader, "test_split": "test", "folds": 2, "fold": fold}, "val")
        for fold in range(2)
    ]
    names = [name for data in held for name in data.image_ids]
    assert sorted(names) == [f"{s}/{s}{n}.jpg" for s in ("test", "train", "valid") for n in (0, 1)]
    for data in held:
        for index, name in enumerate(data.image_ids):
            assert data[index][1]["labels"].tolist() == [int(name[-5]) + 1]
