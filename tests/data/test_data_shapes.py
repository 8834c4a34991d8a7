import hashlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.data import shapes
from frcnn.data.shape_images import CLASS_NAMES, GAP, LOOKS, mark_mask, shape_mask
from frcnn.errors import UserError

SMALL = {"train_images": 12, "val_images": 12}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, len(CLASS_NAMES)), st.integers(8, 90), st.floats(0.75, 1.33))
def test_every_mask_touches_all_four_sides(label, width, ratio):
    mask = shape_mask(label, width, round(width * ratio))
    assert mask.shape == (round(width * ratio), width)
    assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()


def test_all_classes_look_different():
    assert len(set(CLASS_NAMES)) == len(set(LOOKS)) == 72
    assert CLASS_NAMES[:3] == ["circle", "square", "triangle"]
    for side in (14, 20, 40):
        drawn = []
        for label, (_, mark) in enumerate(LOOKS, start=1):
            shape = shape_mask(label, side, side)
            dark = shape & mark_mask(mark, side, side) if mark else np.zeros_like(shape)
            drawn.append(shape.astype(int) + dark)
        different = [(one != two).mean() for i, one in enumerate(drawn) for two in drawn[:i]]
        assert min(different) > 0.06  # of the box's pixels
    # The first classes, frequent in a long tail, are no easier than the last.
    marked = [mark > 0 for _, mark in LOOKS]
    assert 0.8 < np.mean(marked[3:36]) < 0.95 and 0.8 < np.mean(marked[36:]) < 0.95


def test_masks_have_the_area_of_their_shape():
    areas = [shape_mask(label, 200, 100).mean() for label in (1, 2, 3)]
    assert areas == pytest.approx([np.pi / 4, 1, 0.5], abs=0.01)


def test_boxes_are_the_extent_of_what_is_seen(monkeypatch):
    # So bright that noise cannot bring it below white; the background is never white throughout.
    glare = np.full(3, 1e4, dtype=np.float32)
    monkeypatch.setattr("frcnn.data.shape_images._colour", lambda rng, hue: glare)
    for image, target in shapes("train", **SMALL):
        white = (image == 255).all(dim=0)
        for x1, y1, x2, y2 in target["boxes"].int().tolist():
            patch = white[y1:y2, x1:x2].clone()
            assert patch[0].any() and patch[-1].any() and patch[:, 0].any() and patch[:, -1].any()
            white[y1:y2, x1:x2] = False
        assert not white.any(), "something is drawn outside the boxes"


def test_objects_keep_apart_and_inside_and_of_the_asked_size():
    data = shapes("train", train_images=100, num_objects=(2, 8), object_size=(10, 30))
    for _, target in data:
        boxes = target["boxes"]
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (boxes >= 0).all() and (boxes <= torch.tensor([128, 96, 128, 96])).all()
        assert sides.min() >= 10 and sides.max() <= 30
        apart = (boxes[:, None, :2] - boxes[None, :, 2:]).amax(dim=2)
        apart = torch.maximum(apart, apart.T).fill_diagonal_(GAP)
        assert (apart >= GAP).all()
        assert 1 <= len(boxes) <= 8


def test_deterministic_by_index_alone():
    few, many = shapes("train", train_images=5), shapes("train", train_images=9)
    many[7]
    for index in range(5):
        assert torch.equal(few[index][0], many[index][0])
        assert torch.equal(few[index][1]["boxes"], many[index][1]["boxes"])


def test_splits_and_seeds_share_no_image():
    sets = [shapes("train", **SMALL), shapes("val", **SMALL), shapes("train", seed=1, **SMALL)]
    images = {image.numpy().tobytes() for data in sets for image, _ in data}
    assert len(images) == 36
    layouts = {data[index][1]["boxes"].numpy().tobytes() for data in sets for index in range(12)}
    assert len(layouts) == 36


def test_images_without_objects_are_possible():
    data = shapes("train", num_objects=(0, 1), **SMALL)
    counts = np.diff(data.offsets)
    assert 0 in counts and 1 in counts
    assert data[int(np.argmin(counts))][1]["boxes"].shape == (0, 4)
    assert len(shapes("train", num_objects=(0, 0), **SMALL).boxes) == 0


def test_imbalance_is_the_ratio_of_the_ends_and_spares_validation():
    data = shapes("train", train_images=1500, num_objects=(1, 1), imbalance=16)
    # Shares 1 : 1/4 : 1/16 of 1500 objects.
    assert data.class_frequencies() / 1500 == pytest.approx([16 / 21, 4 / 21, 1 / 21], abs=0.03)
    val = shapes("val", val_images=1500, num_objects=(1, 1), imbalance=16)
    assert val.class_frequencies() / 1500 == pytest.approx([1 / 3] * 3, abs=0.04)


def test_class_probabilities_need_not_sum_to_one():
    data = shapes("train", train_images=600, num_objects=(1, 1), class_probabilities=[3, 0, 1])
    frequencies = data.class_frequencies()
    assert frequencies[1] == 0
    assert frequencies[0] / 600 == pytest.approx(0.75, abs=0.06)


def test_a_long_tail_is_a_power_law_in_training_alone():
    options = {"num_classes": 60, "tail_exponent": 1.5, "num_objects": (1, 2)}
    data = shapes("train", train_images=4000, **options)
    assert data.num_classes == 61 and data.class_names == CLASS_NAMES[:60]
    found = data.class_frequencies() / len(data.labels)
    law = 1 / np.arange(1, 61) ** 1.5
    assert found == pytest.approx(law / law.sum(), abs=0.02)
    assert found[0] / found[3] == pytest.approx(8, rel=0.15)
    val = shapes("val", val_images=4000, **options).class_frequencies()
    assert val.min() > 0.6 * val.mean()


def test_without_the_new_options_nothing_changes():
    """Numbers of the version before them: boxes, labels, pixels and seeds of three images."""
    digest = hashlib.sha256()
    data = shapes("train", train_images=3, imbalance=9.0, clutter=2, seed=5)
    digest.update(data.boxes.tobytes() + data.labels.tobytes())
    for index in range(3):
        image, target = data[(1, index)]
        digest.update(image.numpy().tobytes() + str(target["seed"]).encode())
    assert digest.hexdigest()[:16] == "5c17041ae6614688"


def test_clutter_changes_pixels_but_no_object():
    plain, cluttered = shapes("train", **SMALL), shapes("train", clutter=5, **SMALL)
    assert np.array_equal(plain.boxes, cluttered.boxes)
    assert np.array_equal(plain.labels, cluttered.labels)
    assert not torch.equal(plain[0][0], cluttered[0][0])


def test_clutter_is_hollow_and_clear_of_the_objects(monkeypatch):
    painted = []
    monkeypatch.setattr("frcnn.data.shape_images._paint", lambda *args: painted.append(args[1:3]))
    data = shapes("train", num_objects=(1, 2), clutter=3, **SMALL)
    for image_index in range(len(data)):
        painted.clear()
        count = len(data[image_index][1]["boxes"])
        canvas = np.zeros((96, 128), dtype=int)
        for number, ((x1, y1, x2, y2), mask) in enumerate(painted):
            canvas[y1:y2, x1:x2] += 1
            if number >= count:
                middle = mask[mask.shape[0] // 2, mask.shape[1] // 2]
                assert not middle and mask[-1].any() and mask[:, 0].any()
        assert len(painted) > count
        assert canvas.max() == 1


def test_other_image_sizes():
    image, target = shapes("val", width=90, height=150, object_size=(20, 60), **SMALL)[0]
    assert image.shape == (3, 150, 90) and image.dtype == torch.uint8
    assert len(target["boxes"])


def test_it_can_be_sent_to_a_worker():
    data = shapes("train", **SMALL)
    assert torch.equal(pickle.loads(pickle.dumps(data))[3][0], data[3][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object_size": (30, 20)}, "object_size"),
        ({"object_size": (4, 20)}, "object_size"),
        ({"object_size": (20, 97)}, "object_size"),
        ({"num_objects": (5, 2)}, "num_objects"),
        ({"imbalance": 0.5}, "imbalance"),
        ({"imbalance": 3, "class_probabilities": [1, 1, 1]}, "imbalance=3"),
        ({"class_probabilities": [1, 1]}, "circle, square, triangle"),
        ({"class_probabilities": [2]}, "circle, square, triangle"),
        ({"class_probabilities": [1, -1, 1]}, "circle, square, triangle"),
        ({"class_probabilities": [0, 0, 0]}, "circle, square, triangle"),
        ({"train_images": 0}, "train_images"),
        ({"num_classes": 73}, "num_classes=73: needs 1 to 72"),
        ({"tail_exponent": 1.0, "imbalance": 2.0}, "tail_exponent=1.0"),
        ({"tail_exponent": 1.0, "class_probabilities": [1, 1, 1]}, "tail_exponent=1.0"),
        ({"num_classes": 1, "swapped_classes": 0.5}, "swapped_classes"),
    ],
)
def test_options_that_cannot_be_drawn(options, message):
    with pytest.raises(UserError, match=message):
        shapes("train", **options)
