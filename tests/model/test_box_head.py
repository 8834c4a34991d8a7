"""The fast box head is torchvision's, and does not repeat what a preview has computed."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from small import batch, gradients, quick
from test_roi_align import NAMES, SHAPES, features, random_boxes
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from experiments.benchmark.limit import recorded
from frcnn.model import Detector, build_detector
from frcnn.model.box_head import FastTwoMLPHead
from frcnn.model.roi_align import FastRoIAlign
from samplers import OHEM, Candidates, Random


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal, relative to the largest number."""
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def through(pool: type, head: type) -> list[Tensor]:
    """The head's output for pooled boxes, and the gradients of its weights and of the maps."""
    torch.manual_seed(0)
    maps, box_head = features(), head(3 * 49, 16)
    boxes = [random_boxes(40, 1), random_boxes(25, 2)]
    value = box_head(pool(NAMES, 7, 2)(maps, boxes, SHAPES))
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    wanted = [*box_head.parameters(), *maps.values()]
    return [value, *torch.autograd.grad((value * upstream).sum(), wanted)]


@pytest.mark.parametrize("pool", [FastRoIAlign, MultiScaleRoIAlign])
def test_values_and_gradients_are_those_of_torchvision_s_head(pool: type) -> None:
    expected = through(MultiScaleRoIAlign, TwoMLPHead)
    for found, want in zip(through(pool, FastTwoMLPHead), expected, strict=True):
        close(found, want)


def test_the_gradient_of_known_values() -> None:
    head = FastTwoMLPHead(3 * 49, 16)
    x = torch.randn(20, 3, 7, 7).to(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn(20, 16)
    wanted = [x, *head.fc6.parameters()]
    value = head.fc6_of(x)
    expected = torch.autograd.grad((value * upstream).sum(), wanted)
    known = head.gradient_of_fc6(x, value.detach())
    assert torch.equal(known, value)
    for found, want in zip(
        torch.autograd.grad((known * upstream).sum(), wanted), expected, strict=True
    ):
        close(found, want)


class Restless(TwoMLPHead):
    """A head with dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x))


def fast(**options: Any) -> Detector:
    """A small detector whose head is torchvision's, made fast."""
    model = quick(**options)
    model.roi_heads.box_head.__class__ = FastTwoMLPHead
    return model


def step(
    model: Detector, precision: torch.dtype | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a step."""
    torch.manual_seed(7)
    with nullcontext() if precision is None else torch.autocast("cpu", precision):
        losses = model(*batch(4, 2))
    sum(losses.values()).backward()
    return losses, gradients(model)


@pytest.mark.parametrize(("precision", "tolerance"), [(None, 1e-5), (torch.bfloat16, 0.02)])
def test_a_step_with_ohem_is_a_step_with_its_picks(
    precision: torch.dtype | None, tolerance: float
) -> None:
    picked: list[Tensor] = []
    mined = fast(sampler={"rcnn": OHEM(12)})
    mined.sites["rcnn"].observer = lambda name, candidates, weights: picked.append(weights)
    told = fast(sampler={"rcnn": lambda candidates: picked[0]})
    for found, expected in zip(step(mined, precision), step(told, precision), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            close(found[name], value, tolerance)


def first_products(model: Detector) -> list[tuple[int, ...]]:
    """Shapes of the rows that fc6's weight was multiplied with in the forward pass."""
    replay = recorded(lambda: model(*batch(4, 2)))
    return [
        tuple(a.shape) for _, args, _ in replay.calls for a in args[1:2] if a.shape[1:] == (784,)
    ]


def test_the_kept_rows_of_a_preview_are_not_multiplied_again() -> None:
    seen: list[Candidates] = []
    model = fast(sampler={"rcnn": OHEM(12)})
    model.sites["rcnn"].observer = lambda name, candidates, weights: seen.append(candidates)
    products = first_products(model)
    assert products == [(len(seen[0].labels), 784)]
    model.roi_heads.box_head.__class__ = TwoMLPHead
    assert first_products(model) == [(len(seen[-1].labels), 784), (24, 784)]


@pytest.mark.parametrize("sampler", [OHEM(12), Random(12, 0.25)], ids=["ohem", "random"])
def test_an_observer_s_preview_changes_no_digit(sampler: Callable[..., Tensor]) -> None:
    alone, observed = fast(sampler={"rcnn": sampler}), fast(sampler={"rcnn": sampler})
    observed.sites["rcnn"].observer = lambda name, candidates, weights: candidates.losses()
    reused: list[Tensor] = []
    gradient_of_fc6 = observed.roi_heads.box_head.gradient_of_fc6
    observed.roi_heads.box_head.gradient_of_fc6 = lambda x, values: (
        reused.append(values) or gradient_of_fc6(x, values)
    )
    for found, expected in zip(step(observed), step(alone), strict=True):
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
    assert len(reused) == isinstance(sampler, OHEM)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, FastTwoMLPHead),
        ({"roi_align": "torchvision"}, TwoMLPHead),
        ({"name": "fasterrcnn_resnet50_fpn_v2"}, FastRCNNConvFCHead),
        ({"box_head": Restless(256 * 49, 1024)}, Restless),
    ],
    ids=str,
)
def test_only_torchvision_s_own_head_is_made_fast(options: dict[str, Any], kind: type) -> None:
    with torch.device("meta"):
        model = build_detector(4, **({"name": "fasterrcnn_resnet18_fpn"} | options))
    assert type(model.roi_heads.box_head) is kind


def test_a_step_with_a_head_of_convolutions() -> None:
    model = quick(sampler={"rcnn": OHEM(12)})
    head = FastRCNNConvFCHead((16, 7, 7), [16, 16], [32], nn.BatchNorm2d)
    model.roi_heads.box_head = head
    losses, gradient = step(model)
    assert all(value.isfinite() for value in losses.values())
    assert gradient["roi_heads.box_head.0.0.weight"].abs().max() > 0
