"""Validation runs a head once, and its loss and detections are those of two separate passes."""

import pytest
import torch
from small import batch, quick
from test_cascade import cascade
from torch import Tensor, nn

from frcnn.sites.site import stack_candidates


def seeded(targets: list[dict]) -> list[dict]:
    """The draws of a site come from the targets."""
    return [target | {"seed": number} for number, target in enumerate(targets)]


def counted(module: nn.Module) -> list[int]:
    """Fills with the number of rows of each call."""
    calls: list[int] = []
    module.register_forward_hook(lambda m, inputs, out: calls.append(len(out)))
    return calls


@torch.no_grad()
def test_the_loss_is_that_of_the_drawn_rows_alone() -> None:
    model = quick().eval()
    images, targets = batch(3, 2)
    targets = seeded(targets)
    heads, site = model.roi_heads, model.sites["rcnn"]
    passes: list[tuple] = []
    heads.register_forward_pre_hook(lambda m, inputs: passes.append(inputs))
    detections, losses = model(images, targets)
    features, proposals, sizes, resized = passes[0]
    boxes = [torch.cat([p, t["boxes"]]) for p, t in zip(proposals, resized, strict=True)]
    candidates = stack_candidates(boxes, resized, [t["labels"] for t in resized])

    def head(rows: Tensor) -> tuple[Tensor, Tensor]:
        return heads.outputs(features, candidates.split(rows), sizes)

    for name, value in site(candidates, head, head, resized).items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-7)
    for found, alone in zip(detections, model(images), strict=True):
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("objects", [(3, 2), (0, 0)], ids=str)
def test_each_head_sees_proposals_and_objects_once(objects: tuple[int, ...]) -> None:
    for model in (quick().eval(), cascade().eval()):
        heads = getattr(model.roi_heads, "heads", [model.roi_heads])
        calls = [counted(head.box_head) for head in heads]
        proposals: list[int] = []
        model.rpn.register_forward_hook(
            lambda m, i, out, proposals=proposals: proposals.append(sum(map(len, out[0])))
        )
        model(*batch(*objects))
        assert calls == [[proposals[0] + sum(objects)]] * len(heads)
