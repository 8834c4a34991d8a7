"""The fast RoIAlign against torchvision's, and the sort it rests on against torch's."""

import pytest
import torch
from small import batch, quick
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from frcnn.model.roi_align import FastRoIAlign, stable_order

IMAGE = (192, 256)
SHAPES = [IMAGE, (180, 256)]
NAMES = ["0", "1", "2", "3"]
EDGE_CASES = [
    [-40.0, -30, 20, 25],  # partly outside, at each corner
    [230, 170, 300, 260],
    [-300, -300, -200, -200],  # outside
    [10, 10, 10.4, 60],  # thinner than a pixel
    [50, 50, 50, 50],  # no area
    [0, 0, 256, 192],  # everything
    [-100, -100, 500, 400],  # more than everything, of the highest level
    [3.99, 7.01, 12.0, 16.0],
]


def features(levels: int = 4, images: int = 2) -> dict[str, Tensor]:
    """Random maps at strides 4, 8, ..., that want a gradient."""
    g = torch.Generator().manual_seed(0)
    sizes = [(IMAGE[0] // 4 // 2**i, IMAGE[1] // 4 // 2**i) for i in range(levels)]
    maps = [torch.randn(images, 3, *size, generator=g).requires_grad_() for size in sizes]
    return dict(zip(NAMES, maps, strict=False))


def random_boxes(n: int, seed: int) -> Tensor:
    """Boxes of 1 to 900 pixels, many partly outside."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, generator=g) * 256
    half = 0.5 * 900 ** torch.rand(n, 1, generator=g) * (0.8 + torch.rand(n, 2, generator=g))
    return torch.cat([centre - half, centre + half], 1)


def pooled(
    kind: type, maps: dict[str, Tensor], boxes: list[Tensor], ratio: int = 2, size: int | tuple = 7
) -> tuple[Tensor, list[Tensor]]:
    """Values, and the gradients of all maps."""
    value = kind(list(maps), size, ratio)(maps, boxes, SHAPES)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    return value, torch.autograd.grad((value * upstream).sum(), list(maps.values()))


def check(maps: dict[str, Tensor], boxes: list[Tensor], **options) -> None:
    """Equal in value and gradient to 1e-4 absolute."""
    value, gradient = pooled(FastRoIAlign, maps, boxes, **options)
    expected, expected_gradient = pooled(MultiScaleRoIAlign, maps, boxes, **options)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)
    for ours, theirs in zip(gradient, expected_gradient, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_random_boxes_over_all_levels_and_images(seed: int) -> None:
    boxes = [random_boxes(40, seed), random_boxes(25, seed + 10)]
    maps = features()
    reference = MultiScaleRoIAlign(NAMES, 7, 2)
    reference(maps, boxes, SHAPES)
    assert set(reference.map_levels(boxes).tolist()) == {0, 1, 2, 3}
    check(maps, boxes)


def test_boxes_at_and_beyond_every_edge() -> None:
    check(features(), [torch.tensor(EDGE_CASES), torch.tensor(EDGE_CASES).flip(0)])


def test_one_image_without_boxes() -> None:
    check(features(), [torch.zeros(0, 4), random_boxes(10, 3)])
    check(features(), [random_boxes(10, 3), torch.zeros(0, 4)])


def test_no_boxes_at_all() -> None:
    value, gradient = pooled(FastRoIAlign, features(), [torch.zeros(0, 4)] * 2)
    assert value.shape == (0, 3, 7, 7)
    assert all(not g.any() for g in gradient)


@pytest.mark.parametrize("options", [{"ratio": 1}, {"ratio": 3}, {"size": (3, 5)}])
def test_other_grids(options: dict) -> None:
    check(features(), [random_boxes(15, 5), random_boxes(15, 6)], **options)


@pytest.mark.parametrize("ratio", [0, -1])
def test_the_adaptive_ratio(ratio: int) -> None:
    check(features(), [random_boxes(40, 5), random_boxes(25, 6)], ratio=ratio)
    check(features(), [torch.tensor(EDGE_CASES), torch.zeros(0, 4)], ratio=ratio, size=(3, 5))
    value, gradient = pooled(FastRoIAlign, features(), [torch.zeros(0, 4)] * 2, ratio=ratio)
    assert value.shape == (0, 3, 7, 7)
    assert all(not g.any() for g in gradient)


def test_a_single_level() -> None:
    check(features(levels=1), [random_boxes(10, 5), random_boxes(10, 6)])


def test_channels_last_and_half_precision() -> None:
    maps = features()
    boxes = [random_boxes(10, 5), random_boxes(10, 6)]
    expected = FastRoIAlign(NAMES, 7, 2)(maps, boxes, SHAPES)
    last = {key: m.to(memory_format=torch.channels_last) for key, m in maps.items()}
    assert torch.equal(FastRoIAlign(NAMES, 7, 2)(last, boxes, SHAPES), expected)
    half = {key: m.bfloat16() for key, m in maps.items()}
    value = FastRoIAlign(NAMES, 7, 2)(half, boxes, SHAPES)
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(value.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("high", [1, 5, 1 << 16, (1 << 16) + 1, 1 << 20, 1 << 32])
def test_stable_order(high: int) -> None:
    keys = torch.randint(0, high, (4000,), generator=torch.Generator().manual_seed(high))
    keys = torch.cat([keys, keys[:500], torch.tensor([high - 1, 0])])
    assert stable_order(keys).tolist() == keys.argsort(stable=True).tolist()


def test_stable_order_of_nothing() -> None:
    assert stable_order(torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_twenty_training_steps_have_the_same_losses() -> None:
    histories = []
    for kind in ("fast", "torchvision"):
        model = quick(roi_align=kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        history = []
        for step in range(20):
            torch.manual_seed(step)
            losses = model(*batch(3, 4, seed=step % 4))
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            history.append([value.item() for value in losses.values()])
        histories.append(torch.tensor(history))
    fast, stock = histories
    torch.testing.assert_close(fast, stock, rtol=0, atol=1e-4)
    # The head has learnt something, through its RoIAlign too.
    assert fast[-4:, 2].mean() < 0.9 * fast[:4, 2].mean()
