from pathlib import Path

import numpy as np
import pytest

from frcnn.build import annotated
from frcnn.data import voc
from frcnn.errors import NoSplitError, UserError

WHOLE = (1, 1, 40, 30)


def test_one_based_inclusive_boxes_become_stretches_of_the_plane(voc_folder):
    voc_folder.add("train", "a", ("cat", WHOLE), ("dog", (11, 6, 20, 25), 1))
    data = voc_folder.read()
    assert data.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 25]]
    assert data.areas.tolist() == [1200, 200]
    assert data.class_names == data.category_ids == ["cat", "dog"]
    assert data.labels.tolist() == [1, 2]
    assert data.ignore.tolist() == [False, True]
    assert data.num_classes == 3
    assert not data.problems


def test_a_clean_set_keeps_every_field(voc_folder):
    voc_folder.add("train", "a", ("cat", (1, 1, 10, 10)))
    voc_folder.add("train", "empty")
    voc_folder.add("train", "b", ("cat", (1, 1, 5, 5)), ("cat", (2, 2, 9, 9)))
    data = voc_folder.read()
    assert data.image_ids == ["a", "empty", "b"]
    assert data.offsets.tolist() == [0, 1, 1, 3]
    assert data.files.tolist() == ["a.jpg", "empty.jpg", "b.jpg"]
    assert data.widths.tolist() == [40, 40, 40] and data.heights.tolist() == [30, 30, 30]
    image, target = data[1]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].shape == target["ignore"].shape == (0, 4)
    assert target["labels"].shape == (0,)


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((5, 5, 5, 9), "boxes without area"),
        ((5, 9, 9, 9), "boxes without area"),
        ((9, 5, 5, 9), "boxes without area"),
        ((50, 5, 60, 9), "boxes outside the image"),
        ((5, -9, 9, 0), "boxes outside the image"),
        (("nan", 5, 9, 9), "boxes that are not four finite numbers"),
        (("inf", 5, 9, 9), "boxes that are not four finite numbers"),
        (("wide", 5, 9, 9), "boxes that are not four finite numbers"),
        (("", 5, 9, 9), "boxes that are not four finite numbers"),
    ],
)
def test_a_bad_box_is_dropped_and_named(voc_folder, box, kind):
    voc_folder.add("train", "a", ("cat", WHOLE), ("cat", box))
    data = voc_folder.read()
    assert data.boxes.tolist() == [[0, 0, 40, 30]]
    assert data.problems.summary() == f"dropped 1 {kind} (first: a.xml object 2)"


def test_a_box_partly_outside_is_clipped_and_counted(voc_folder):
    voc_folder.add("train", "a", ("cat", (31, 21, 45, 30)))
    data = voc_folder.read()
    assert data.boxes.tolist() == [[30, 20, 40, 30]]
    assert data.areas.tolist() == [100]
    assert data.problems.counts == {"boxes clipped to the image": 1}


def test_classes_come_from_the_training_split_for_both(voc_folder):
    voc_folder.add("train", "a", ("dog", WHOLE), ("bird", WHOLE))
    voc_folder.add("val", "b", ("dog", WHOLE))
    assert voc_folder.read("val").class_names == ["bird", "dog"]
    assert voc_folder.read("val").labels.tolist() == [2]


def test_a_class_unknown_in_training_is_refused_by_name(voc_folder):
    voc_folder.add("train", "a", ("dog", WHOLE))
    voc_folder.add("val", "b", ("dog", WHOLE), ("unicorn", WHOLE))
    with pytest.raises(UserError, match=r"b\.xml object 2: class 'unicorn'"):
        voc_folder.read("val")


def test_given_classes_set_the_order_and_drop_the_rest(voc_folder):
    voc_folder.add("train", "a", ("dog", WHOLE), ("cat", (1, 1, 9, 9)), ("unicorn", WHOLE))
    data = voc_folder.read(classes=["dog", "cat"])
    assert data.labels.tolist() == [1, 2]
    assert data.problems.counts == {"objects of an unknown class": 1}


def test_an_object_without_a_box_or_name_is_dropped(voc_folder):
    voc_folder.add("train", "a", ("cat", WHOLE), ("", WHOLE))
    path = voc_folder.root / "Annotations/a.xml"
    bare = "<object><name>cat</name></object></annotation>"
    path.write_text(path.read_text().replace("</annotation>", bare))
    data = voc_folder.read(classes=["cat"])
    assert len(data.boxes) == 1
    assert data.problems.counts == {
        "boxes that are not four finite numbers": 1,
        "objects of an unknown class": 1,
    }


def test_file_name_of_the_annotation_goes_first_then_the_id(voc_folder):
    voc_folder.add("train", "a", ("cat", WHOLE), filename="other.png", image="other.png")
    voc_folder.add("train", "b", filename="gone.jpg", image="b.JPEG")
    assert voc_folder.read().files.tolist() == ["other.png", "b.JPEG"]


@pytest.mark.parametrize(
    ("filename", "files", "chosen", "counts"),
    [
        ("a.jpg", ["a.jpg", "a.png"], "a.jpg", {}),
        ("a.png", ["a.jpg", "a.png"], "a.png", {}),
        ("a", ["a.jpg", "a.png"], "a.jpg", {"two images of one name": 1}),
        ("b.jpg", ["a.jpg", "a.png", "b.jpg"], "a.jpg", {"two images of one name": 1}),
        *(("b", [f"b.{end}"], f"b.{end}", {}) for end in ("jpg", "bmp", "webp", "tif")),
        *(("", [f"a.{end}"], f"a.{end}", {}) for end in ("bmp", "webp", "TIF", "tiff")),
    ],
)
def test_the_file_of_an_image(voc_folder, filename, files, chosen, counts):
    voc_folder.add("train", "a", ("cat", WHOLE), filename=filename, image=None)
    for file in files:
        (voc_folder.root / "JPEGImages" / file).touch()
    data = voc_folder.read()
    assert data.files.tolist() == [chosen] and data.problems.counts == counts


def test_ids_may_have_spaces_and_end_as_a_flag_does(voc_folder):
    for id in ("my img", "my img 2", "its img 1"):
        voc_folder.add("train", id, ("cat", WHOLE))
    lines = "my img 1\nmy img 2 -1\nits img 1\n"
    (voc_folder.root / "ImageSets/Main/train.txt").write_text(lines)
    assert voc_folder.read().image_ids == ["my img", "my img 2", "its img 1"]


def test_one_file_of_two_annotations_and_a_rotation_are_counted(voc_folder):
    voc_folder.add("train", "a", ("cat", WHOLE))
    voc_folder.add("train", "b", ("cat", WHOLE), filename="a.jpg", image=None)
    path = voc_folder.root / "Annotations/b.xml"
    turned = "<attribute><name>rotation</name><value>30.0</value></attribute>"
    text = path.read_text().replace("</object>", f"<attributes>{turned}</attributes></object>")
    path.write_text(text)
    assert voc_folder.read().problems.counts == {
        "rotated boxes, whose rotation is ignored": 1,
        "images whose file has another id too": 1,
    }


def test_boxes_in_0_to_1_are_refused(voc_folder):
    voc_folder.add("train", "a", ("cat", (0.2, 0.1, 0.6, 0.9)))
    with pytest.raises(UserError, match=r"train\.txt: all 1 boxes are smaller than a pixel"):
        voc_folder.read()


def test_where_all_images_are_missing_the_first_path_is_said(voc_folder):
    voc_folder.add("train", "a", ("cat", WHOLE), image=None)
    with pytest.raises(UserError, match=r"the first one looked for is .*/JPEGImages/a\.jpg"):
        voc_folder.read()


def test_a_missing_image_is_dropped_with_its_objects(voc_folder):
    voc_folder.add("train", "gone", ("cat", (1, 1, 5, 5)), image=None)
    voc_folder.add("train", "b", ("cat", WHOLE))
    data = voc_folder.read()
    assert data.image_ids == ["b"]
    assert data.boxes.tolist() == [[0, 0, 40, 30]]
    assert data.problems.summary() == "dropped 1 images missing in JPEGImages (first: gone)"


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_size_is_read_from_the_image_where_it_is_not_stated(voc_folder, size):
    voc_folder.add("train", "a", ("cat", WHOLE), size=size)
    data = voc_folder.read()
    assert (data.widths[0], data.heights[0]) == (40, 30)
    assert not data.problems


def test_an_unreadable_image_without_stated_size_is_dropped(voc_folder):
    voc_folder.add("train", "a", ("cat", WHOLE))
    voc_folder.add("train", "b", size="")
    (voc_folder.root / "JPEGImages/b.jpg").write_text("no image")
    assert voc_folder.read().problems.summary() == (
        "dropped 1 unreadable images (first: b.jpg: cannot identify image file)"
    )


def test_whole_files_that_cannot_be_used_are_refused_by_name(voc_folder):
    with pytest.raises(UserError, match=r"train\.txt: cannot be read"):
        voc_folder.read()
    voc_folder.add("train", "a", ("cat", WHOLE), image=None)
    with pytest.raises(UserError, match="JPEGImages: contains no readable image"):
        voc_folder.read()
    annotation = voc_folder.root / "Annotations/a.xml"
    annotation.write_text("<html></html>")
    with pytest.raises(UserError, match=r"a\.xml: is not a VOC annotation \(its root is <html>\)"):
        voc_folder.read()
    annotation.write_text("{}")
    with pytest.raises(UserError, match=r"a\.xml: is not XML"):
        voc_folder.read()
    annotation.unlink()
    with pytest.raises(UserError, match=r"a\.xml: cannot be read"):
        voc_folder.read()
    voc_folder.add("train", "a")
    with pytest.raises(UserError, match="lists image 'a' more than once"):
        voc_folder.read(classes=["cat"])
    (voc_folder.root / "ImageSets/Main/train.txt").write_text("\n \n")
    with pytest.raises(UserError, match="lists no image"):
        voc_folder.read()


def test_split_without_any_object_is_refused_in_training(voc_folder):
    voc_folder.add("train", "a", ("cat", (5, 5, 5, 5)))
    voc_folder.add("val", "b")
    with pytest.raises(UserError, match="no object to train on .*boxes without area"):
        voc_folder.read("train")
    assert len(voc_folder.read("val").boxes) == 0


def test_real_images(bccd):
    train = voc("train", bccd, "trainval", "test")
    val = voc("val", bccd, "trainval", "test")
    assert (len(train), len(val)) == (292, 72)
    assert train.class_names == val.class_names == ["Platelets", "RBC", "WBC"]
    # Counted with grep over the XML files: 4888 objects in all, two of them a single point.
    assert len(train.boxes) + len(val.boxes) == 4886
    assert train.problems.summary() == (
        "dropped 2 boxes without area (first: BloodImage_00338.xml object 13)"
    )
    # BloodImage_00000.xml, first object: 260 177 491 376, a white cell.
    assert train.boxes[0].tolist() == [259, 176, 491, 376]
    assert train.class_names[train.labels[0] - 1] == "WBC"
    image, target = train[0]
    assert image.shape == (3, 480, 640)
    # White cells are stained: the box is darker in green than the image.
    x1, y1, x2, y2 = target["boxes"][0].int().tolist()
    assert image[1, y1:y2, x1:x2].float().mean() < image[1].float().mean() - 5
    assert np.all(train.boxes >= 0) and np.all(train.boxes[:, 2] <= 640)


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("JPEGImages", "Annotations"), ("images", "annotations"), ("images", "."), (".", ".")],
)
def test_a_folder_without_lists_is_split_by_a_fraction(voc_folder, tmp_path, images, annotations):
    for id in "abcd":
        voc_folder.add("train", id, ("dog", WHOLE))
    root = tmp_path / "set"
    for source, place in (("JPEGImages", images), ("Annotations", annotations)):
        (root / place).mkdir(parents=True, exist_ok=True)
        for file in (voc_folder.root / source).iterdir():
            file.rename(root / place / file.name)
    data = voc("train", root)
    assert data.image_ids == list("abcd") and data.boxes.tolist() == [[0, 0, 40, 30]] * 4
    assert not data.problems and data[3][0].shape == (3, 30, 40)
    with pytest.raises(NoSplitError, match="has no val split; data.val_fraction=0.2 cuts one"):
        voc("val", root)
    node = {"_target_": "frcnn.data.voc", "_partial_": True, "root": str(root)}
    parts = [annotated(node | {"val_fraction": 0.25}, split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [3, 1]
    folds = [annotated(node | {"folds": 2, "fold": k}, "val") for k in (0, 1)]
    assert sorted(Path(file).name for part in folds for file in part.files) == [
        "a.jpg", "b.jpg", "c.jpg", "d.jpg"
    ]  # fmt: skip


def test_a_folder_without_annotations_says_what_it_looked_for(tmp_path, save_image):
    save_image(tmp_path / "a.jpg", 40, 30)
    with pytest.raises(UserError, match=r"ImageSets/Main/train\.txt: cannot be read"):
        voc("train", tmp_path)
