import pickle

import pytest
import torch
from torch import Tensor

from frcnn.data import DetectionDataset, shapes, transforms

PRESETS = [transforms.flip, transforms.flip_color, transforms.scale_jitter]


def sample() -> tuple[Tensor, dict]:
    """20x10, the left object bright; a crowd at the right edge."""
    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    image[:, 2:8, 1:4] = 255
    return image, {
        "boxes": torch.tensor([[1.0, 2, 4, 8], [8, 1, 16, 9]]),
        "labels": torch.tensor([2, 1]),
        "ignore": torch.tensor([[15.0, 0, 20, 10]]),
        "image_id": 5,
        "seed": 9,
    }


def empty() -> tuple[Tensor, dict]:
    image, target = sample()
    none = torch.zeros(0, 4)
    return image, {**target, "boxes": none, "ignore": none, "labels": target["labels"][:0]}


def test_none_is_no_transform():
    assert transforms.none() is None


def test_flip_mirrors_image_objects_and_ignored_areas():
    image, target = sample()
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        new_image, new = transforms.flip()(image, target)
        flipped = not torch.equal(new_image, image)
        seen.add(flipped)
        if flipped:
            assert torch.equal(new_image, image.flip(2))
            assert new["boxes"].tolist() == [[16, 2, 19, 8], [4, 1, 12, 9]]
            assert new["ignore"].tolist() == [[0, 0, 5, 10]]
        else:
            assert torch.equal(new["boxes"], target["boxes"])
            assert torch.equal(new["ignore"], target["ignore"])
        assert new["labels"].tolist() == [2, 1]
    assert seen == {True, False}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("make", [sample, empty])
def test_what_comes_out_has_the_form_of_what_goes_in(preset, make):
    for seed in range(25):
        torch.manual_seed(seed)
        image, target = preset()(*make())
        assert type(image) is Tensor and image.dtype == torch.uint8 and image.shape[0] == 3
        assert set(target) == {"boxes", "labels", "ignore", "image_id", "seed"}
        assert (target["image_id"], target["seed"]) == (5, 9)
        for key in ("boxes", "ignore"):
            assert type(target[key]) is Tensor and target[key].dtype == torch.float32
            assert target[key].shape[1:] == (4,)
            corner = torch.tensor([*image.shape[:0:-1]] * 2)
            assert (target[key] >= 0).all() and (target[key] <= corner).all()
        assert target["labels"].shape == target["boxes"].shape[:1]
        assert target["labels"].dtype == torch.int64


def test_colours_change_but_boxes_do_not():
    torch.manual_seed(1)
    image, target = sample()
    changed = [transforms.flip_color()(image, target) for _ in range(20)]
    assert any(new.float().sum() != image.float().sum() for new, _ in changed)
    assert {tuple(new["labels"].tolist()) for _, new in changed} == {(2, 1)}


def test_scale_jitter_scales_both_ways_and_labels_stay_with_their_boxes():
    """The bright object has label 2: wherever it is kept, its box must be bright inside."""
    image, target = sample()
    sizes, kept = set(), []
    for seed in range(150):
        torch.manual_seed(seed)
        new_image, new = transforms.scale_jitter()(image, target)
        sizes.add(tuple(new_image.shape[1:]))
        kept.append(len(new["labels"]))
        for (x1, y1, x2, y2), label in zip(
            new["boxes"].round().int().tolist(), new["labels"].tolist(), strict=True
        ):
            inside = new_image[:, y1:y2, x1:x2].float().mean()
            assert (inside > 200) == (label == 2)
    assert min(h for h, _ in sizes) < 10 < max(h for h, _ in sizes)
    assert {1, 2} <= set(kept)


def test_ignored_areas_never_become_objects():
    image, target = sample()
    only = {**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0]}
    for seed in range(30):
        torch.manual_seed(seed)
        _, new = transforms.scale_jitter()(image, only)
        assert len(new["boxes"]) == 0 and len(new["ignore"]) <= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_within_a_data_set(preset):
    data: DetectionDataset = shapes("train", train_images=6)
    data.transform = pickle.loads(pickle.dumps(preset()))  # workers may be spawned
    for key in [(0, 1), (3, 1), (3, 5)]:
        (image, target), (again, target_again) = data[key], data[key]
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], target_again["boxes"])
    assert data.ground_truth() == shapes("train", train_images=6).ground_truth()
