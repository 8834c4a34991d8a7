import json

import pytest

from frcnn.data import coco2017
from frcnn.errors import UserError


def box(x, y, w, h, **more):
    return {"image_id": 7, "category_id": 3, "bbox": [x, y, w, h], **more}


def test_labels_follow_the_category_ids_and_boxes_become_corners(coco_folder):
    coco_folder.write(
        "train",
        [
            box(1, 2, 10, 20, area=150.5, iscrowd=0, id=11, segmentation=[[1, 2, 3, 4, 5, 6.5]]),
            box(0, 0, 4, 5, category_id=1, iscrowd=1, id=12, segmentation={"counts": [1, 2]}),
        ],
    )
    data = coco_folder.read()
    assert data.class_names == ["dog", "cat"] and data.category_ids == [1, 3]
    assert data.labels.tolist() == [2, 1]
    assert data.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 4, 5]]
    assert data.areas.tolist() == [150.5, 20]
    assert data.ignore.tolist() == [False, True]
    assert not data.problems


def test_boxes_alone_are_enough(coco_folder):
    coco_folder.write("train", [box(1, 2, 3, 4)])
    assert coco_folder.read().areas.tolist() == [12]


def test_annotations_are_sorted_to_their_images_in_file_order(coco_folder):
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in (5, 2, 9)]
    rows = [box(k, 0, 1, 1, image_id=id) for k, id in enumerate([9, 5] * 19)]
    coco_folder.write("train", rows, images)
    data = coco_folder.read()
    assert data.image_ids == [5, 2, 9]
    assert data.offsets.tolist() == [0, 19, 19, 38]
    assert data.boxes[:, 0].tolist() == [*range(1, 38, 2), *range(0, 38, 2)]


def test_string_ids(coco_folder):
    image = {"id": "x-1", "file_name": "sub/x.png", "width": 40, "height": 30}
    row = {"id": "ann", "image_id": "x-1", "category_id": "c", "bbox": [1, 1, 2, 2]}
    coco_folder.write("train", [row], [image], [{"id": "c", "name": "cat"}])
    data = coco_folder.read()
    assert data.image_ids == ["x-1"] and data.category_ids == ["c"]
    assert data[0][0].shape == (3, 30, 40)
    assert data.ground_truth()["images"][0]["id"] == 0


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (box(5, 5, 0, 9), "boxes without area"),
        (box(5, 5, 9, -1), "boxes without area"),
        (box(40, 5, 9, 9), "boxes outside the image"),
        (box(float("nan"), 5, 9, 9), "boxes that are not four finite numbers"),
        (box(5, 5, float("inf"), 9), "boxes that are not four finite numbers"),
        (box("left", 5, 9, 9), "boxes that are not four finite numbers"),
        (box(5, 5, 9, None), "boxes that are not four finite numbers"),
        ({"image_id": 7, "category_id": 3}, "boxes that are not four finite numbers"),
        (
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3]},
            "boxes that are not four finite num",
        ),
        ({"image_id": 7, "category_id": 3, "bbox": 5}, "boxes that are not four finite numbers"),
        (box(5, 5, 9, 9, category_id=2), "objects of an unknown class"),
        ({"image_id": 7, "bbox": [1, 2, 3, 4]}, "objects of an unknown class"),
        (box(5, 5, 9, 9, image_id=8), "annotations of an unknown image"),
        (box(5, 5, 9, 9, image_id="7"), "annotations of an unknown image"),
    ],
)
def test_a_bad_annotation_is_dropped_and_named(coco_folder, row, kind):
    coco_folder.write("train", [{**row, "id": 21}, box(0, 0, 40, 30, id=22)])
    data = coco_folder.read()
    assert data.boxes.tolist() == [[0, 0, 40, 30]]
    assert data.problems.summary().startswith(f"dropped 1 {kind}")
    assert "annotation 21" in data.problems.summary()


def test_every_row_malformed_alike(coco_folder):
    coco_folder.write("train", [box(0, 0, 4, 4)])
    coco_folder.write("val", [{**box(0, 0, 4, 4), "bbox": [1, 2, 3]} for _ in range(3)])
    data = coco_folder.read("val")
    assert data.problems.counts == {"boxes that are not four finite numbers": 3}


def test_partly_outside_is_clipped_but_rounding_is_not_counted(coco_folder):
    coco_folder.write("train", [box(30, 0, 20, 10, id=1), box(30, 0, 10.004, 10, id=2)])
    data = coco_folder.read()
    assert data.boxes.tolist() == [[30, 0, 40, 10]] * 2
    assert data.problems.summary() == (
        "kept 1 boxes clipped to the image (first: annotation 1 (seven.png))"
    )


def test_repeated_and_zero_annotation_ids_are_counted_and_renumbered(coco_folder):
    coco_folder.write("train", [box(k, 0, 5, 5, id=id) for k, id in enumerate((0, 4, 4))])
    data = coco_folder.read()
    assert data.problems.counts == {"annotation ids that are 0 or repeated": 2}
    assert [row["id"] for row in data.ground_truth()["annotations"]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (box(0, 0, 40, 30), "boxes annotated twice"),
        (box(0, 0, 40, 30, category_id=1), "boxes annotated with two classes"),
        (box(5, 5, 0.5, 9), "boxes smaller than a pixel"),
        (
            box(5, 5, 9, 9, attributes={"rotation": 37.5}),
            "rotated boxes, whose rotation is ignored",
        ),
    ],
)
def test_what_looks_like_a_mistake_is_kept_and_counted(coco_folder, row, kind):
    coco_folder.write("train", [box(0, 0, 40, 30, attributes={"rotation": 0.0}), row])
    data = coco_folder.read()
    assert len(data.boxes) == 2 and data.problems.counts == {kind: 1}


def test_attributes_without_a_rotation_are_no_problem(coco_folder):
    odd = [None, [], "x", {}, {"rotation": None}, {"rotation": "left"}, {"rotation": 180}]
    rows = [box(k, 0, 5, 5, attributes=value) for k, value in enumerate(odd)]
    coco_folder.write("train", rows)
    assert not coco_folder.read().problems


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_in_0_to_1_are_refused(coco_folder, split):
    rows = [box(0.1, 0.2, 0.5, 0.3), box(0, 0, 1, 1)]
    coco_folder.write("train", rows if split == "train" else [box(0, 0, 5, 5)])
    coco_folder.write("val", rows)
    with pytest.raises(UserError, match=rf"{split}\.json: all 2 boxes are smaller than a pixel"):
        coco_folder.read(split)


def test_crowds_alone_are_no_objects_and_said(coco_folder):
    rows = [box(0, 0, 9, 9, iscrowd=1), box(1, 1, 9, 9, iscrowd=1)]
    coco_folder.write("train", rows)
    with pytest.raises(UserError, match="no object to train on .2 crowd/difficult objects are ign"):
        coco_folder.read()
    coco_folder.write("train", [box(0, 0, 9, 9)])
    coco_folder.write("val", rows)
    assert coco_folder.read("val").warnings() == [
        "2 crowd/difficult objects are ignored, and no other object is left"
    ]


def test_a_file_under_two_ids_is_counted(coco_folder):
    images = [{"id": n, "file_name": "a.png", "width": 40, "height": 30} for n in (1, 2)]
    coco_folder.write("train", [box(0, 0, 9, 9, image_id=1)], images)
    assert coco_folder.read().problems.summary() == (
        "kept 1 images whose file has another id too (first: a.png (image 2))"
    )


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("sub/a.png", r"; the first one looked for is .*/coco/sub/a\.png$"),
        (r"im\a.png", r"a\.png; write / instead of \\ in file names"),
        ("/data/a.png", "no absolute path and no"),
        ("../a.png", "no absolute path and no"),
    ],
)
def test_where_all_images_are_missing_the_first_path_is_said(coco_folder, file, says):
    image = {"id": 7, "file_name": file, "width": 40, "height": 30}
    coco_folder.write("train", [box(0, 0, 5, 5)], [image], files=False)
    with pytest.raises(UserError, match=says):
        coco_folder.read()


def test_missing_images_take_their_annotations_with_them(coco_folder):
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in (1, 2, 3)]
    rows = [box(n, 0, 1, 1, image_id=n) for n in (1, 2, 3)]
    coco_folder.write("train", rows, images)
    (coco_folder.root / "1.png").unlink()
    data = coco_folder.read()
    assert data.image_ids == [2, 3]
    assert data.boxes[:, 0].tolist() == [2, 3]
    assert data.offsets.tolist() == [0, 1, 2]
    assert data.problems.summary() == "dropped 1 images missing in the folder (first: 1.png)"


def test_size_is_read_from_the_image_where_it_is_not_stated(coco_folder):
    images = [
        {"id": 7, "file_name": "seven.png", "width": 0},
        {"id": 8, "file_name": "eight.png", "height": None},
    ]
    coco_folder.write("train", [box(0, 0, 60, 30)], images)
    (coco_folder.root / "eight.png").write_text("no image")
    data = coco_folder.read()
    assert (data.widths.tolist(), data.heights.tolist()) == ([40], [30])
    assert data.boxes.tolist() == [[0, 0, 40, 30]]
    assert data.problems.counts["unreadable images"] == 1


def test_val_may_list_the_same_categories_in_another_order(coco_folder):
    coco_folder.write("train", [box(0, 0, 5, 5)])
    swapped = [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}]
    coco_folder.write("val", [box(0, 0, 5, 5)], categories=swapped)
    assert coco_folder.read("val").class_names == coco_folder.read("train").class_names


def test_val_may_lack_categories(coco_folder):
    coco_folder.write("train", [box(0, 0, 5, 5)])
    coco_folder.write("val", [box(0, 0, 5, 5)], categories=[{"id": 3, "name": "cat"}])
    data = coco_folder.read("val")
    assert data.class_names == ["dog", "cat"] and data.labels.tolist() == [2]


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 4, "name": "cow"}],
    ],
)
def test_val_with_other_categories_is_refused(coco_folder, categories):
    coco_folder.write("train", [box(0, 0, 5, 5)])
    coco_folder.write("val", [], categories=categories)
    with pytest.raises(UserError, match=r"val\.json: its categories .* differ .*'c(at|ow)'"):
        coco_folder.read("val")


def test_a_changed_training_file_is_read_again(coco_folder):
    coco_folder.write("train", [box(0, 0, 5, 5)])
    coco_folder.write("val", [])
    coco_folder.read("val")
    coco_folder.write("train", [box(0, 0, 5, 5)], categories=[{"id": 3, "name": "cow"}])
    with pytest.raises(UserError, match="differ from the training file's in 1: 'dog', 3: 'cat'"):
        coco_folder.read("val")


def test_the_training_file_is_parsed_once_for_both_splits(coco_folder, monkeypatch):
    coco_folder.write("train", [box(0, 0, 5, 5)])
    coco_folder.write("val", [])
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(1) or loads(text))
    coco_folder.read("train")
    coco_folder.read("val")
    assert len(parsed) == 2


def test_a_name_of_two_categories_is_told_apart(coco_folder):
    names = [{"id": 3, "name": "cell"}, {"id": 0, "name": "cell"}, {"id": 5, "name": "dish"}]
    coco_folder.write("train", [box(0, 0, 5, 5)], categories=names)
    assert coco_folder.read().class_names == ["cell (id 0)", "cell (id 3)", "dish"]


def test_what_tells_names_apart_is_printable(coco_folder):
    names = [{"id": id, "name": "cell"} for id in ("a", "\x00")]
    coco_folder.write("train", [box(0, 0, 5, 5, category_id="a")], categories=names)
    assert coco_folder.read().class_names == [r"cell (id \x00)", "cell (id a)"]


def test_text_that_looks_like_a_mask_is_left_alone(coco_folder):
    name = 'a "segmentation": [1, 2], b'
    image = {"id": 7, "file_name": "seven.png", "width": 40, "height": 30, "note": name}
    rows = [box(0, 0, 5, 5, segmentation=[]), box(1, 1, 5, 5, segmentation=[[-1e-3, 2e5], [3]])]
    coco_folder.write("train", rows, [image], [{"id": 3, "name": name}])
    data = coco_folder.read()
    assert data.class_names == [name] and len(data.boxes) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation/>", "is not JSON"),
        ("[]", "is not a COCO file .*'images'"),
        ('{"images": [{"id": 1, "file_name": "a"}]}', "no list of 'annotations'"),
        ('{"images": [1], "annotations": [], "categories": []}', "no list of 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "has no 'file_name'"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_by_name(coco_folder, text, message):
    (coco_folder.root / "train.json").write_text(text)
    with pytest.raises(UserError, match=rf"train\.json: .*{message}"):
        coco_folder.read()


def test_what_else_is_refused(coco_folder):
    with pytest.raises(UserError, match=r"train\.json: cannot be read"):
        coco_folder.read()
    image = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}
    coco_folder.write("train", [], [image, image])
    with pytest.raises(UserError, match="image id 7 is used more than once"):
        coco_folder.read()
    coco_folder.write("train", [], [image], [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])
    with pytest.raises(UserError, match="category id 1 is used more than once"):
        coco_folder.read()
    coco_folder.write("train", [box(0, 0, 0, 0)], [image])
    with pytest.raises(UserError, match="no object to train on .*boxes without area"):
        coco_folder.read()
    (coco_folder.root / "a.png").unlink()
    with pytest.raises(UserError, match="contains no readable image"):
        coco_folder.read()


def test_folders_of_coco2017(tmp_path, save_image):
    save_image(tmp_path / "train2017/a.jpg", 40, 30)
    (tmp_path / "annotations").mkdir()
    image = {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}
    content = {"images": [image], "annotations": [box(0, 0, 5, 5)]}
    content["categories"] = [{"id": 3, "name": "cat"}]
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    assert coco2017("train", tmp_path)[0][1]["boxes"].tolist() == [[0, 0, 5, 5]]
