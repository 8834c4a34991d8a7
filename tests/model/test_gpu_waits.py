"""How often a training step makes the host wait for a GPU."""

import warnings
from typing import Any

import pytest
import torch
from pretend_gpu import pretend_gpu, to_gpu, to_host
from small import batch, detector, gradients, quick
from torch import Tensor, nn

from frcnn.model.roi_align import FastRoIAlign, ask_levels
from samplers import OHEM, PISA

IMAGES = 3
SAMPLERS: dict[str, dict[str, Any]] = {
    "random": {},
    "ohem": {"rcnn": OHEM(32)},
    "pisa": {"rcnn": PISA(64, 0.25)},
}
# The RPN's draw and the numbers of proposals, the head's draw, the boxes of each level.
WAITS = 3
# OHEM and PISA look at the head and suppress boxes; PISA first counts what it looks at. The loop
# adds two to all of these: the terms, and the norm of the gradients.
MORE_WAITS = {"random": 0, "ohem": 2, "pisa": 3}


def step(model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Any]:
    """The terms, after a backward pass."""
    model.zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("images", [2, 12])
def test_the_waits_of_a_step_do_not_depend_on_the_images(name: str, images: int) -> None:
    model = quick(sampler=SAMPLERS[name])
    model.roi_heads.preview_rows = 60  # many parts
    given, targets = batch(*[4] * images, sizes=[(64, 96)] * images)
    with pretend_gpu():
        step(model, to_gpu(given), targets)  # what is made once is made
    with pretend_gpu() as waits:
        step(model, to_gpu(given), targets)
    assert waits.total() == WAITS + MORE_WAITS[name], waits


@pytest.mark.parametrize(
    "samplers",
    [
        {"rpn": OHEM(64), "rcnn": OHEM(32, 0.25)},
        {"rpn": OHEM(64, 0.5, None), "rcnn": PISA(64, 0.5, score_threshold=0.0)},
    ],
    ids=["ohem", "pisa"],
)
def test_a_step_on_a_gpu_is_that_on_a_cpu(samplers: dict[str, Any]) -> None:
    model = quick(sampler=samplers)
    given, targets = batch(4, 0, 6)
    expected, expected_gradients = step(model, given, targets), gradients(model)
    with pretend_gpu():
        found = to_host(step(model, to_gpu(given), targets))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, expected_gradients[name], atol=1e-5, rtol=1e-3)


def test_a_preview_pools_from_the_levels_of_its_own_batch() -> None:
    def counts(pool: FastRoIAlign, size: int) -> list[int]:
        padded = -(-size // 32) * 32
        maps = {str(n): torch.zeros(1, 1, padded >> n + 2, padded >> n + 2) for n in range(4)}
        boxes = torch.tensor([[0.0, 0, 100, 100], [5, 5, 20, 20]])
        asked = ask_levels(pool, to_gpu(maps), to_gpu(boxes), [(size, size)])
        assert asked is not None
        return asked.read()[0]

    with pretend_gpu():
        expected = counts(FastRoIAlign(list("0123"), 7, 2), 128)
        pool = FastRoIAlign(list("0123"), 7, 2)
        # torchvision guesses strides of 2, 4, 8 and 16 from an image of 40 pixels.
        assert counts(pool, 40) != expected
        assert counts(pool, 128) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_waits_of_a_step_on_a_real_gpu() -> None:
    model = detector().cuda()
    images, targets = batch(*[4] * IMAGES)
    images = [image.cuda() for image in images]
    for index, target in enumerate(targets):
        target["seed"] = index
    sum(model(images, targets).values()).backward()  # what is made once is made
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            sum(model(images, targets).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert len(waits) == WAITS, [str(w.message) for w in waits]
