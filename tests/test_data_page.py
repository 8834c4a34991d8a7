"""The page on a data set: numbers by hand, and anchors as torchvision places them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import quick
from tiny import SMALL, call, small_network
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from experiments.data.__main__ import main
from experiments.data.figures import octave_edges
from frcnn.data import DetectionDataset, Problems
from frcnn.data.image_size import image_size
from frcnn.data.objects import Objects, objects_of
from frcnn.data.records import Classes, Images, RawObjects, clean_objects
from frcnn.errors import ConfigError, UserError
from frcnn.survey import settings as setting_module
from frcnn.survey.anchors import View, cells_of, coverage, generator_of, views_of
from frcnn.survey.pictures import cut, worst_rows
from frcnn.survey.settings import Setting, settings
from frcnn.survey.suggest import (
    NOT_REACHED,
    anchor_sizes,
    cells_with,
    ladders,
)
from frcnn.survey.tables import classes, sentences, shortened

NAMES = ["cat", "dog", "cow"]


def made(
    sizes: list[tuple[int, int]], rows: list[tuple[int, list[float], int, bool]]
) -> DetectionDataset:
    """A data set of grey images; a row is (image, box, label, ignored)."""
    widths, heights = np.array(sizes, dtype=np.int32).T
    image, boxes, labels, ignore = (list(column) for column in zip(*rows, strict=True))
    raw = RawObjects(
        np.array(image),
        np.array(boxes, dtype=np.float64),
        np.array(labels),
        np.array(ignore),
        np.full(len(rows), np.nan),
        str,
    )
    files = [f"{number}.png" for number in range(len(sizes))]
    images = Images(list(files), np.array(files), widths, heights)

    def load(index: int) -> torch.Tensor:
        return torch.full((3, int(heights[index]), int(widths[index])), 128, dtype=torch.uint8)

    problems = Problems()
    objects = clean_objects(raw, widths, heights, problems)
    return DetectionDataset(load, images, objects, Classes(NAMES, list(NAMES)), problems)


@pytest.fixture
def data() -> DetectionDataset:
    """Three images; a cat of 10x40, two dogs of 20x20 and 8x8, and an ignored cat."""
    rows = [
        (0, [10, 10, 20, 50], 1, False),
        (0, [30, 20, 50, 40], 2, False),
        (0, [0, 0, 60, 60], 1, True),
        (1, [4, 4, 12, 12], 2, False),
    ]
    return made([(100, 80), (64, 64), (100, 80)], rows)


def drawn_at_random(number: int, seed: int = 0) -> DetectionDataset:
    """Images of a few sizes, of ``number`` objects of 4 to 90 pixels; some at the border."""
    rng = np.random.default_rng(seed)
    sizes = [(100, 80), (64, 64), (150, 60), (61, 97)]
    rows: list[Any] = []
    for row in range(number):
        width, height = sizes[row % 4]
        x, y = rng.uniform(-10, width - 4), rng.uniform(-10, height - 4)
        w, h = 2 ** rng.uniform(3.7, 6.5, size=2)
        rows.append((row % 4, [x, y, x + w, y + h], 1 + row % 3, False))
    return made(sizes, rows)


def test_objects_by_hand(data: DetectionDataset) -> None:
    objects = objects_of(data)
    assert objects.sizes.tolist() == [20, 20, 8]
    assert objects.ratios.tolist() == [0.25, 1, 1]
    assert objects.image.tolist() == [0, 0, 1] and objects.labels.tolist() == [1, 2, 2]


def one_cell(cell: list[float], grid: tuple[int, int], stride: int, scale: float = 1) -> Any:
    """Views and cells of one level with one anchor, for a data set whose image 0 has 2 objects."""
    level = np.array([grid]), np.array([[stride, stride]])
    view = View(1, np.arange(2), (0, 0), np.array([scale, scale]), *level)
    return [view], [np.array([cell])]


def test_best_anchor_by_hand() -> None:
    """An anchor of 20x20 at multiples of 16: x up to 2 * 16, y up to 1 * 16."""
    boxes = np.array([[3.0, 1, 13, 11], [40, 40, 60, 60]])
    objects = Objects(boxes, np.ones(2, dtype=int), np.zeros(2, dtype=int))
    found = coverage(*one_cell([-10, -10, 10, 10], (3, 2), 16), objects)
    # centre (8, 6): a tie along x goes to position 0: [-10, -10, 10, 10] shares 7 x 9 pixels
    assert found.anchors.tolist() == [[-10, -10, 10, 10], [22, 6, 42, 26]]
    assert found.ious[0] == pytest.approx(63 / (100 + 400 - 63)) and found.ious[1] == 0
    assert found.below(0.2) == 1 and found.below(0.1) == 0.5
    doubled = coverage(*one_cell([-10, -10, 10, 10], (3, 2), 16, scale=2), objects)
    assert doubled.boxes[0].tolist() == [6, 2, 26, 22] and doubled.sizes[0] == 20
    assert doubled.anchors[0].tolist() == [6, 6, 26, 26]
    assert doubled.ious[0] == pytest.approx(320 / 480)


class Dense(nn.Module):
    """A detector with its anchor generator at the top, three sizes per level, as RetinaNet."""

    def __init__(self) -> None:
        super().__init__()
        sizes = tuple((s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)) for s in (8, 16, 32, 64, 128))
        generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
        self.detector = RetinaNet(
            quick().backbone, 4, min_size=70, max_size=90, anchor_generator=generator
        )


@pytest.mark.parametrize("dense", [False, True])
def test_best_anchors_are_the_best_of_all_that_torchvision_makes(dense: bool) -> None:
    data = drawn_at_random(80)
    objects = objects_of(data)
    detector: Any = (Dense().detector if dense else quick()).eval()
    expected, resized = [], []
    for index in range(len(data)):
        images, targets = detector.transform(
            [data[index][0].float()], [{"boxes": data[index][1]["boxes"]}]
        )
        maps = list(detector.backbone(images.tensors).values())
        (anchors,) = generator_of(detector)(ImageList(images.tensors, images.image_sizes), maps)
        expected.append(box_iou(targets[0]["boxes"], anchors).amax(1))
        resized.append(targets[0]["boxes"])
    found = coverage(views_of(detector, data, objects), cells_of(generator_of(detector)), objects)
    torch.testing.assert_close(torch.from_numpy(found.boxes).float(), torch.cat(resized))
    torch.testing.assert_close(torch.from_numpy(found.ious).float(), torch.cat(expected))
    pairs = box_iou(torch.from_numpy(found.anchors), torch.from_numpy(found.boxes)).diagonal()
    np.testing.assert_allclose(pairs, found.ious)


def test_a_detector_without_anchors_is_named() -> None:
    with pytest.raises(UserError, match="one anchor generator, this one has 0"):
        generator_of(nn.Linear(1, 1))


def test_scaled_anchors_keep_the_sizes_of_a_level() -> None:
    generator = AnchorGenerator(((10, 20), (40, 60)), ((1.0,), (0.25, 1.0)))
    first, second = cells_with(generator, [20, 20])
    assert first.tolist() == [[-10, -10, 10, 10], [-20, -20, 20, 20]]
    sides = (second[:, 2:] - second[:, :2]).tolist()  # 20 and 30, wide and square
    assert sides == [[40, 10], [60, 16], [20, 20], [30, 30]]


def test_ladders_double_from_level_to_level() -> None:
    found = list(ladders(3, 4))
    assert [sizes[0] for sizes in found] == [8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 64]
    assert found[3] == [13, 26, 52]


def test_the_suggested_anchors_by_hand() -> None:
    """All objects are squares of 45 pixels, each at the centre of a position of stride 8."""
    centre = 8.0 * np.arange(1, 5)[:, None]
    boxes = np.concatenate([centre - 22.5, centre - 22.5, centre + 22.5, centre + 22.5], axis=1)
    objects = Objects(boxes, np.ones(4, dtype=int), np.zeros(4, dtype=int))
    level = np.array([[9, 9]]), np.array([[8, 8]])
    views = [View(1, np.arange(4), (72, 72), np.ones(2), *level)]
    # Trials are 16, 19, 23, 27, 32, 38, 45, ...; torchvision rounds 22.5 to 22: IoU (44 / 45)^2.
    far = AnchorGenerator(((16,),), ((1.0,),))
    assert anchor_sizes(far, views, objects) == [45]
    ious = coverage(views, cells_with(far, [45]), objects).ious
    np.testing.assert_allclose(ious, (44 / 45) ** 2)
    assert anchor_sizes(AnchorGenerator(((45,),), ((1.0,),)), views, objects) is None
    # With one of 24 pixels, 32 reaches all at IoU 0.5; 38 and 45 have a larger mean and miss it.
    boxes[0] = [8 - 12, 8 - 12, 8 + 12, 8 + 12]
    assert anchor_sizes(AnchorGenerator(((32,),), ((1.0,),)), views, objects) is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [(8, 16, 32, 64, 128), (64, 128, 256, 512, 1024)])
def test_suggested_anchors_cover_no_worse(seed: int, sizes: tuple[int, ...]) -> None:
    data = drawn_at_random(60, seed)
    objects, detector = objects_of(data), quick()
    views = views_of(detector, data, objects)
    generator = AnchorGenerator(tuple((s,) for s in sizes), ((0.5, 1.0, 2.0),) * 5)
    now = coverage(views, cells_of(generator), objects)
    suggested = anchor_sizes(generator, views, objects)
    assert suggested is not None or sizes[0] == 8  # the large ones reach no small object
    if suggested is not None:
        then = coverage(views, cells_with(generator, suggested), objects)
        assert then.below(NOT_REACHED) <= now.below(NOT_REACHED)
        assert then.ious.mean() > now.ious.mean()


def squares(side: float, number: int) -> Objects:
    """So many squares, all in image 0."""
    box = np.array([0, 0, side, side])
    return Objects(np.tile(box, (number, 1)), np.ones(number, int), np.zeros(number, int))


def test_the_suggested_image_size_by_hand() -> None:
    one = np.array([800]), np.array([600])
    # 40 pixels become 16 at 0.4 times 600 = 240, and the next multiple of 32 is 256
    assert image_size(*one, squares(40, 10)) == (256, 352)  # 256 * 800 / 600 = 341.3
    assert image_size(*one, squares(400, 10)) == (192, 256)  # not below 192
    assert image_size(*one, squares(2, 10)) == (1216, 1632)  # about twice 600, not more
    assert image_size(np.array([100]), np.array([80]), squares(60, 1)) == (96, 128)
    mixed = Objects(
        np.concatenate([squares(400, 95).boxes, squares(2, 5).boxes]),
        np.ones(100, int),
        np.zeros(100, int),
    )
    assert image_size(*one, mixed) == (192, 256)  # 5 % may be small


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The model nodes that were built, of a detector of a few thousand weights."""
    nodes: list[dict[str, Any]] = []

    def detector(config: dict[str, Any], num_classes: int) -> Any:
        node = config["model"]
        nodes.append(node)
        if node["anchor_sizes"] != node.get("fixed", node["anchor_sizes"]):
            raise ConfigError("anchors are fixed")
        model = quick(min_size=node["min_size"], max_size=node["max_size"])
        sizes = node["anchor_sizes"]
        model.rpn.anchor_generator = AnchorGenerator([(s,) for s in sizes], ((0.5, 1, 2),) * 5)
        return model

    monkeypatch.setattr(setting_module, "detector", detector)
    return nodes


def test_settings(built: list[dict[str, Any]]) -> None:
    data = drawn_at_random(60)
    model = {"min_size": 64, "max_size": 96, "anchor_sizes": [100, 200, 400, 800, 1600],
             "weights": "COCO_V1"}  # fmt: skip
    objects = objects_of(data)
    now, anchors, size, both = settings(model, data, objects)[0]
    assert [node["weights"] for node in built] == [None] * 4
    least, most = image_size(data.widths, data.heights, objects)
    assert size.override == f"model.min_size={least} model.max_size={most}" and not now.override
    assert (size.min_size, size.max_size) == (least, most)
    assert re.fullmatch(r"model.anchor_sizes=\[\d+(,\d+){4}\]", anchors.override)
    assert both.override.startswith(size.override + " model.anchor_sizes=[")
    for before, after in ((now, anchors), (size, both), (now, both)):
        assert after.coverage.below(0.5) < before.coverage.below(0.5)
        assert after.coverage.ious.mean() > before.coverage.ious.mean()


def test_what_is_not_suggested_is_said(built: list[dict[str, Any]]) -> None:
    """An object of 400 pixels has its anchor at the present image size only."""
    data = made([(800, 600)], [(0, [200, 100, 600, 500], 1, False)])
    sizes = [400] * 5
    model = {"min_size": 600, "max_size": 800, "anchor_sizes": sizes, "fixed": sizes}
    found, notes = settings(model, data, objects_of(data))
    assert [one.override for one in found] == [""] and found[0].coverage.ious[0] == 1
    smaller = "`model.min_size=192 model.max_size=256` leaves more objects below IoU 0.5."
    assert notes == [f"No image size is suggested: {smaller}"]
    model |= {"anchor_sizes": [900] * 5, "fixed": [900] * 5}
    assert settings(model, data, objects_of(data))[1][0] == (
        "No anchor sizes are suggested. anchors are fixed."
    )


def setting_of(data: DetectionDataset) -> Setting:
    """The quick detector's."""
    objects, detector = objects_of(data), quick()
    generator, views = generator_of(detector), views_of(detector, data, objects)
    return Setting("", 64, 128, generator, views, coverage(views, cells_of(generator), objects))


def test_the_page_says_what_it_counts(data: DetectionDataset) -> None:
    now = setting_of(data)
    said = sentences(data, objects_of(data), now)
    assert said[0].startswith("3 images with 3 objects; 1 images have none. 1 more objects are")
    assert "is dog (2 objects), the rarest cow (0)" in said[1]
    table = classes(data, objects_of(data), now)
    rows = [re.findall(r">([^<>]+)<", row) for row in re.findall("<tr>.*?</tr>", table)[1:]]
    # 20 pixels become 16 in an image of 100x80 at min_size 64; 8 stay 8 in one of 64x64
    assert [row[:6] for row in rows] == [
        ["dog", "2", "66.7%", "66.7%", "14", "12"],
        ["cat", "1", "33.3%", "33.3%", "20", "16"],
        ["cow", "0", "0.0%", "0.0%", "–", "–"],
    ]


def test_of_many_classes_both_ends_are_named() -> None:
    assert shortened(list(range(20))) == list(range(20))
    assert shortened(list(range(21))) == [*range(10), *range(11, 21)]


def test_the_worst_objects_are_of_different_images() -> None:
    objects = Objects(np.zeros((4, 4)), np.ones(4, int), np.array([0, 0, 1, 2]))
    found = coverage([], [], objects)._replace(ious=np.array([0.2, 0.1, 0.5, 0.3]))
    assert worst_rows(objects, found, 2) == [1, 3]


def test_a_cut_keeps_boxes_in_place() -> None:
    image = torch.zeros(3, 50, 60, dtype=torch.uint8)
    image[:, 20, 30] = 255
    part, boxes = cut(image, torch.tensor([[30.0, 20, 34, 24], [28, 20, 38, 24]]))
    # the margin is 5 pixels: columns 23 to 42, rows 15 to 28
    assert part.shape == (3, 14, 20) and boxes[0].tolist() == [7, 5, 11, 9]
    assert part[0, 5, 7] == 255
    assert cut(image, torch.tensor([[0.0, 0, 60, 50], [0, 0, 9, 9]]))[0].shape == image.shape


def test_bars_are_quarters_of_octaves() -> None:
    np.testing.assert_allclose(octave_edges(np.array([5.0, 9])), 2 ** np.arange(2, 4.1, 0.25))
    assert octave_edges(np.array([4.0, 4.0]))[[0, -1]].tolist() == [4, 8]


def test_the_command_writes_one_file_that_needs_no_other(tmp_path: Path) -> None:
    line = [value for value in SMALL if value.startswith("data.")] + [f"out={tmp_path}/out"]
    with small_network():
        assert call(main, *line) == 0
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "data.html"]
    text = (tmp_path / "out/data.html").read_text()
    assert "12 images with" in text and "Data set shapes under fasterrcnn_resnet18_fpn" in text
    assert "http" not in text and "<script src" not in text and "<link" not in text
    sources = re.findall(r'src="([^"]{0,16})', text)
    assert len(sources) == 2 + 9 + 6 and all(source.startswith("data:image/") for source in sources)
