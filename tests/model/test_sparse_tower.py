"""A tower whose backward pass visits only some locations against autograd's own."""

from collections.abc import Callable

import pytest
import torch
from tiny import small_network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.retinanet import RetinaNetRegressionHead

import frcnn
from frcnn.model import retinanet, sparse_tower
from frcnn.model.sparse_tower import can_be_sparse
from frcnn.model.sparse_tower import sparse_tower as run
from samplers import All, Random, Sampler

CPU = torch.device("cpu")
SHAPES = ((9, 14), (5, 7), (2, 3), (1, 1))
EDGES = [(0, 0, 0, 0), (0, 1, 8, 13), (0, 0, 8, 5), (1, 1, 0, 3), (2, 0, 1, 2), (3, 1, 0, 0)]
# (level, image, y, x) of the anchors with a gradient
PLACES = {
    "none": [],
    "one": [(0, 0, 4, 6)],
    "borders of every level": EDGES,
    "all of a level": [(1, 0, y, x) for y in range(5) for x in range(7)],
}


def tower(dtype: torch.dtype, depth: int = 4) -> tuple[list[nn.Module], list[Tensor]]:
    """Layers with gradients of a size of about 1, and features of two images."""
    torch.manual_seed(0)
    head = RetinaNetRegressionHead(6, 3).to(dtype)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    levels = [torch.randn(2, 6, *shape, dtype=dtype, requires_grad=True) for shape in SHAPES]
    return [*head.conv[:depth], head.bbox_reg], levels


def usual(layers: list[nn.Module], levels: list[Tensor]) -> list[Tensor]:
    return [nn.Sequential(*layers)(level) for level in levels]


def outputs_and_gradients(
    forward: Callable[..., list[Tensor]],
    layers: list[nn.Module],
    levels: list[Tensor],
    places: list[tuple[int, ...]],
) -> tuple[list[Tensor], list[Tensor]]:
    outputs = forward(layers, levels)
    upstream = [torch.zeros_like(x) for x in outputs]
    for number, (level, image, y, x) in enumerate(places):
        upstream[level][image, 4 * (number % 3), y, x] = 1.0 + number
    inputs = [*levels, *nn.ModuleList(layers).parameters()]
    return outputs, list(torch.autograd.grad(outputs, inputs, upstream))


@pytest.mark.parametrize("share", [0.0, 0.4, 2.0])  # no layer, some layers, all layers
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("depth", [0, 4])
def test_outputs_and_gradients_are_the_usual_ones(
    depth: int, places: list, dtype: torch.dtype, bound: float, share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sparse_tower, "SPARSE_SHARE", share)
    monkeypatch.setattr(sparse_tower, "CHUNK", 7)
    layers, levels = tower(dtype, depth)
    outputs, gradients = outputs_and_gradients(run, layers, levels, places)
    expected = outputs_and_gradients(usual, layers, levels, places)
    for own, other in zip(outputs, expected[0], strict=True):
        torch.testing.assert_close(own, other, rtol=bound, atol=bound)
    for own, other in zip(gradients, expected[1], strict=True):
        assert own.shape == other.shape and own.dtype == other.dtype
        assert (own - other).norm() <= bound * other.norm()
    assert any(gradient.any() for gradient in gradients) == bool(places)


def test_one_anchor_costs_its_receptive_field() -> None:
    layers, levels = tower(torch.float32)
    for layer in layers[:-1]:
        nn.init.constant_(layer[0].bias, 10.0)  # no ReLU is 0
    outputs = run(layers, levels)
    with FlopCounterMode(display=False) as counter:
        outputs[0][0, 0, 4, 6].backward()
    # Squares of 1, 3, 5, 7 and 9 pixels, cut at the 9 rows of the level. Two products each, over
    # 9 * 6 inputs; 12 outputs of the last layer, 6 of the others.
    assert counter.get_total_flops() == 2 * 2 * 54 * (12 * 1 + 6 * (9 + 25 + 49 + 81))


def test_bf16_is_as_near_to_fp32_as_the_usual_pass() -> None:
    layers, levels = tower(torch.float32)
    errors = []
    exact = torch.cat([g.flatten() for g in outputs_and_gradients(usual, layers, levels, EDGES)[1]])
    for forward in (run, usual):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = outputs_and_gradients(forward, layers, levels, EDGES)[1]
        whole = torch.cat([gradient.flatten() for gradient in found])
        errors.append((whole - exact).norm() / exact.norm())
    assert 0 < errors[0] < 1.2 * errors[1] < 0.1


def test_only_the_layers_that_it_copies() -> None:
    layers, _ = tower(torch.float32)
    assert can_be_sparse(layers, CPU) and not can_be_sparse(layers, torch.device("cuda"))
    normalized = RetinaNetRegressionHead(32, 3, norm_layer=lambda width: nn.GroupNorm(8, width))
    assert not can_be_sparse([*normalized.conv, normalized.bbox_reg], CPU)
    assert not can_be_sparse([*layers[:-1], nn.Conv2d(6, 12, 1)], CPU)


@pytest.mark.parametrize("sampler", [All(), Random(8, 0.25)], ids=["all", "random"])
def test_twenty_steps_have_the_same_losses(
    monkeypatch: pytest.MonkeyPatch, sampler: Sampler
) -> None:
    """Batches with positives on several levels, and every fourth without any.

    With few anchors the class tower's gradient is sparse too.
    """
    found, visits = [], []
    gathered = sparse_tower.Grid._gathered
    monkeypatch.setattr(
        sparse_tower.Grid, "_gathered", lambda *given: visits.append(1) or gathered(*given)
    )
    for allowed in (True, False):
        if not allowed:
            monkeypatch.setattr(retinanet, "can_be_sparse", lambda *_: False)
        torch.manual_seed(0)
        with small_network():
            model = frcnn.build_detector(
                4,
                "retinanet_resnet18_fpn",
                min_size=96,
                max_size=128,
                sampler={"dense": sampler},
            )
        model = model.double().train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        torch.manual_seed(1)  # of the draws
        found.append([step(model, optimizer, seed) for seed in range(20)])
        assert visits
        visits = visits if allowed else []
    torch.testing.assert_close(torch.stack(found[0]), torch.stack(found[1]), rtol=1e-10, atol=0)
    assert found[0][-2].sum() < found[0][0].sum()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 96, 128, generator=draw).double() for _ in range(2)]
    boxes = torch.tensor([[10, 10, 42, 50], [0, 40, 90, 90]]).double()[: 0 if seed % 4 == 3 else 2]
    labels = torch.tensor([1, 3])[: len(boxes)]
    losses = model(images, [{"boxes": boxes, "labels": labels} for _ in images])
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    return torch.stack([loss.detach() for loss in losses.values()])
