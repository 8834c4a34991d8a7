"""RetinaNet: torchvision's, number for number, and everything at its site."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import options, small_network, tiny
from torch import Tensor, nn
from torchvision.models import detection

import frcnn
from frcnn.build import dataset, fill_from_data
from frcnn.build import detector as build
from frcnn.data.batching import collate, empty_batch
from frcnn.errors import ConfigError
from frcnn.losses import FocalSigmoid
from frcnn.model import SamplingRetinaNet
from samplers import Candidates

STOCK = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")
SIZE = {"min_size": 96, "max_size": 128}
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, SamplingRetinaNet]:
    """torchvision's RetinaNet of 3 classes and ours with the same weights."""
    torch.manual_seed(0)
    builder = getattr(detection, name)
    theirs = builder(weights=None, weights_backbone=None, num_classes=4, **SIZE).to(dtype)
    ours = frcnn.build_detector(4, name, **SIZE).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


def batch(dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    """Three images, the second without an object."""
    draw = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 96, 128, generator=draw).to(dtype) for _ in range(3)]
    boxes = [[[10, 10, 60, 70], [30, 40, 90, 90]], [], [[5, 5, 30, 28]]]
    targets = [
        {
            "boxes": torch.tensor(own).to(dtype).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        for own, labels in zip(boxes, ([1, 3], [], [2]), strict=True)
    ]
    return images, targets


def copies(targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [dict(target) for target in targets]


@pytest.mark.parametrize("name", STOCK)
def test_labels_losses_and_gradients_are_torchvision_s(name: str) -> None:
    theirs, ours = pair(name)
    seen: list[Candidates] = []
    ours.sites["dense"].observer = lambda name, candidates, weights: seen.append(candidates)
    matched = watch_matches(theirs)
    images, targets = batch()
    expected, found = (model(images, copies(targets)) for model in (theirs, ours))
    assert list(found) == list(expected)
    for term, value in expected.items():
        torch.testing.assert_close(found[term], value, rtol=1e-6, atol=1e-7)
    sum(expected.values()).backward()
    sum(found.values()).backward()
    grads = [[p.grad for p in model.parameters()] for model in (ours, theirs)]
    whole = torch.cat([grad.flatten() for grad in grads[1]]).norm()
    for own, other in zip(*grads, strict=True):
        # A tensor whose gradient is nearly 0 has the rounding errors of the larger ones.
        assert (own - other).norm() <= 1e-5 * other.norm().maximum(1e-3 * whole)
    (candidates,) = seen
    foreground = torch.cat([rows >= 0 for rows in matched])
    ignored = torch.cat([rows == -2 for rows in matched])
    assert torch.equal(candidates.positive, foreground) and foreground.any()
    assert torch.equal(candidates.labels == -1, ignored) and ignored.any()


def watch_matches(model: nn.Module) -> list[Tensor]:
    """Fills with the matches of each image that torchvision's head is given."""
    matched: list[Tensor] = []
    compute_loss = model.head.compute_loss

    def watched(targets: Any, outputs: Any, anchors: Any, rows: list[Tensor]) -> Any:
        matched.extend(rows)
        return compute_loss(targets, outputs, anchors, rows)

    model.head.compute_loss = watched
    return matched


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_thirty_steps_in_double_precision(name: str) -> None:
    models = pair(name, torch.float64)
    # BatchNorm over three images of noise multiplies a rounding error by about four per step; with
    # this rate it stays below 1e-11 of the weights, which move by 1e-5 and more.
    optimizers = [torch.optim.SGD(m.parameters(), 1e-5, momentum=0.9) for m in models]
    before = {name: value.clone() for name, value in models[1].state_dict().items()}
    for step in range(30):
        images, targets = batch(torch.float64, seed=step)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            sum(model(images, copies(targets)).values()).backward()
            optimizer.step()
    for (name, own), other in zip(
        models[1].state_dict().items(), models[0].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9, msg=name)
    moved = max((own - before[name]).abs().max() for name, own in models[1].named_parameters())
    assert moved > 1e-5


@pytest.mark.parametrize("name", STOCK)
def test_detections_are_torchvision_s(name: str) -> None:
    theirs, ours = pair(name)
    draw = torch.Generator().manual_seed(1)
    for model in (theirs, ours):
        model.eval()
        logits = model.head.classification_head.cls_logits
        draw.manual_seed(1)
        with torch.no_grad():
            logits.weight.copy_(torch.randn(logits.weight.shape, generator=draw) / 20)
            logits.bias.view(-1, 4)[:, 0] = -100  # column 0 is background: never detected here
        model.score_thresh = 0.02
    images, targets = batch()
    expected, found = theirs(images), ours(images)
    for own, other in zip(found, expected, strict=True):
        assert len(other["boxes"]) > 100
        for key, value in other.items():
            torch.testing.assert_close(own[key], value)
    detections, losses = ours(images, copies(targets))
    assert torch.equal(detections[0]["boxes"], found[0]["boxes"])
    assert set(losses) == {"classification", "bbox_regression"}


def test_a_file_of_torchvision_s_and_an_old_one(tmp_path: Path) -> None:
    """Checkpoints of 2021 and before call the head's layers conv.0, conv.2, conv.4, conv.6."""
    theirs, _ = pair(STOCK[0])
    state = theirs.state_dict()
    old = {}
    for key, value in state.items():
        if ".conv." in key and key.startswith("head."):
            before, _, rest = key.partition(".conv.")
            number, _, last = rest.partition(".0.")
            key = f"{before}.conv.{2 * int(number)}.{last}"
        old[key] = value
    assert set(old) != set(state)
    for number, content in enumerate((state, old)):
        torch.save(content, tmp_path / f"{number}.pth")
        ours = frcnn.build_detector(4, STOCK[0], weights=str(tmp_path / f"{number}.pth"), **SIZE)
        for key, value in ours.state_dict().items():
            assert torch.equal(value, state[key]), key
    # A file for other classes: everything but the class logits is loaded.
    other = frcnn.build_detector(6, STOCK[0], weights=str(tmp_path / "0.pth"), **SIZE)
    for key, value in other.state_dict().items():
        assert key.startswith(other.predictor) or torch.equal(value, state[key]), key
    bias = other.head.classification_head.cls_logits.bias
    assert bias.shape == (9 * 6,) and torch.allclose(bias.sigmoid(), torch.tensor(0.01))


def retinanet(**values: Any) -> SamplingRetinaNet:
    with small_network():
        model = frcnn.build_detector(4, "retinanet_resnet18_fpn", **SIZE, **values)
    assert isinstance(model, SamplingRetinaNet)
    return model


def test_every_number_of_the_head_and_its_anchors() -> None:
    model = retinanet(
        first_level=3, last_level=6, anchor_sizes=[10, 20, 40, 80], anchor_scales=[1, 1.26],
        whole_anchor_sizes=False, aspect_ratios=[1.0], head_depth=2, head_width=24,
    )  # fmt: skip
    assert model.anchor_generator.sizes == ((10, 12.6), (20, 25.2), (40, 50.4), (80, 100.8))
    tower = model.head.classification_head
    assert [layer[0].out_channels for layer in tower.conv] == [24, 24]
    assert tower.cls_logits.out_channels == 2 * 4
    images, targets = batch()
    assert all(loss.isfinite() for loss in model(images, copies(targets)).values())
    with pytest.raises(ConfigError, match="expected 5 sizes, one per level, got 2"):
        retinanet(anchor_sizes=[8, 16])
    with pytest.raises(ConfigError, match="an anchor of 2 x 0.4 pixels is cut to 0"):
        retinanet(anchor_sizes=[2, 8, 16, 32, 64], anchor_scales=[1, 0.4])


@pytest.mark.parametrize(("first", "last"), [(2, 5), (3, 5), (3, 6), (4, 7), (3, 7)])
def test_the_levels_of_the_pyramid(first: int, last: int) -> None:
    model = retinanet(first_level=first, last_level=last)
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 128, 128))
    strides = [128 // features.shape[-1] for features in maps.values()]
    assert strides == [2**level for level in range(first, last + 1)]
    assert [sizes[0] for sizes in model.anchor_generator.sizes] == [4 * s for s in strides]


def test_the_prior_and_column_0() -> None:
    """Untrained, each class has the prior; column 0 is trained on request only, as a class."""
    images, targets = batch()
    for column_0 in (False, True):
        loss = FocalSigmoid(prior=0.2, per="image", background_column=column_0)
        model = retinanet(loss={"dense": loss})
        bias = model.head.classification_head.cls_logits.bias.view(9, 4)
        assert torch.allclose(bias[:, 1:].sigmoid(), torch.tensor(0.2))
        model(images, copies(targets))["classification"].backward()
        gradient = model.head.classification_head.cls_logits.bias.grad.view(9, 4)
        assert (gradient[:, 1:] != 0).all() and bool((gradient[:, 0] != 0).all()) == column_0


def test_a_placeholder_is_no_image() -> None:
    """A process without an image has a share of 0, and the mean stays that of the others."""
    images, targets = batch()
    (small,), (placeholder,) = empty_batch()
    model = retinanet()
    model.backbone.eval()  # BatchNorm would count the placeholder
    expected = model(images, copies(targets))
    found = model([*images, small / 255], [*copies(targets), dict(placeholder)])
    torch.testing.assert_close(found, expected)
    alone = model([small / 255], [dict(placeholder)])
    assert all(loss == 0 and loss.requires_grad for loss in alone.values())


def test_a_flat_box_is_refused() -> None:
    images, targets = batch()
    targets[2]["boxes"][0, 2] = 5
    with pytest.raises(ValueError, match="image 2 of the batch.*no height or no width"):
        retinanet()(images, targets)


EVERYTHING = [
    *(f"sampler/dense={name}" for name in options("sampler/dense")),
    *(f"loss/dense={name}" for name in options("loss/dense")),
    *(f"box_loss/dense={name}" for name in options("box_loss/dense")),
]


@pytest.mark.parametrize("choice", EVERYTHING)
def test_every_method_trains_at_the_dense_site(choice: str) -> None:
    """Each one gives finite terms, and a gradient in every layer of the head."""
    config, _ = tiny("model=retinanet_resnet18_fpn", choice)
    data = dataset(config["data"], "train")
    fill_from_data(config["loss"], data, config["model"]["sites"])
    torch.manual_seed(0)
    with small_network():
        model = build(config, data.num_classes).train()
    images, targets = collate([data[0, index] for index in range(2)])
    losses = model([image / 255 for image in images], targets)
    assert set(losses) == {"classification", "bbox_regression"}
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
