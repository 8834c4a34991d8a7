"""No sampler makes the host wait for a GPU: its numbers are never needed to go on.

That is of the samplers' own work. Those that look at the network, or suppress boxes, wait once for
each.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from pretend_gpu import pretend_gpu, to_gpu, to_host
from small import part, stacked
from test_contract import CHOICES, sampler_of
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from samplers import Candidates, Prediction

# Whether NMS has looked at enough boxes, twice in OHEM with a quota. PISA also counts the rows that
# it asks for predictions.
WAITS = {"ohem": 2, "pisa": 2, "isr_p": 2, "effective_prime": 2, "effective_prime_isr_p": 2}
SIZES = (300, 280, 300)


def candidates_on(device: str) -> Candidates:
    """Three images of labels -1, 0, 1 and 4 objects each, known sizes."""
    n = sum(SIZES)
    labels = torch.randint(-1, 2, (n,), device=device)
    boxes = torch.rand(n, 4, device=device)

    def predict(rows: torch.Tensor) -> Prediction:
        loss = torch.rand(len(rows), device=device)
        return Prediction(torch.rand(len(rows), 2, device=device), boxes[rows], loss)

    return Candidates(
        boxes=boxes,
        labels=labels,
        ious=torch.rand(n, device=device),
        gt=torch.randint(0, 12, (n,), device=device),
        gt_boxes=torch.rand(12, 4, device=device),
        image=torch.cat([torch.full((s,), i, device=device) for i, s in enumerate(SIZES)]),
        predict=predict,
        sizes=SIZES,
    )


@pytest.mark.parametrize(
    ("site", "name", "values"), [o for o in CHOICES if o[1] not in WAITS or not o[2]]
)
def test_nothing_is_read_from_a_gpu(site: str, name: str, values: str) -> None:
    sampler, _ = sampler_of(site, name, values)
    # Tensors without numbers: whatever would have to read one raises. No GPU is needed for that.
    with FakeTensorMode():
        candidates = candidates_on("cuda")
        if name in WAITS:
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                sampler(candidates)
        else:
            assert sampler(candidates).shape == candidates.labels.shape


@pytest.mark.parametrize(("site", "name", "values"), [o for o in CHOICES if o[1] in WAITS])
def test_a_pretended_gpu_is_waited_for_seldom_and_weighs_like_a_cpu(
    site: str, name: str, values: str
) -> None:
    sampler, _ = sampler_of(site, name, values)
    parts = [part([0] * 40 + [1] * 9 + [-1] * 3, 1, seed) for seed in range(3)]
    torch.manual_seed(0)
    expected = sampler(stacked(parts))
    with pretend_gpu() as waits:
        torch.manual_seed(0)
        weights = to_host(sampler(on_pretended_gpu(parts)))
    assert waits.total() <= WAITS[name], waits
    if name == "ohem":
        assert weights.equal(expected)
    assert_counts(weights, expected, stacked(parts))


def on_pretended_gpu(parts: list[dict[str, torch.Tensor]]) -> Candidates:
    candidates = stacked(to_gpu(parts))
    candidates.image = to_gpu(candidates.image)
    candidates.sizes = [len(p["labels"]) for p in parts]
    return candidates


@contextmanager
def raising_on_waits() -> Iterator[None]:
    """CUDA's own watch over calls that synchronise."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("site", "name", "values"), [o for o in CHOICES if o[1] not in WAITS])
def test_nothing_synchronises_on_a_gpu(site: str, name: str, values: str) -> None:
    sampler, _ = sampler_of(site, name, values)
    candidates = candidates_on("cuda")
    with raising_on_waits():
        sampler(candidates)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_a_gpu_gives_weights_like_a_cpu(site: str, name: str, values: str) -> None:
    sampler, _ = sampler_of(site, name, values)
    parts = [part([0] * 40 + [1] * 9 + [-1] * 3, 1, seed) for seed in range(3)]
    host = stacked(parts)
    torch.manual_seed(0)
    expected = sampler(host)
    device = stacked([{k: v.cuda() for k, v in p.items()} for p in parts])
    device.image = device.image.cuda()
    torch.manual_seed(0)
    weights = sampler(device).cpu()
    assert_counts(weights, expected, host)


def assert_counts(weights: torch.Tensor, expected: torch.Tensor, host: Candidates) -> None:
    assert not weights[host.labels < 0].any()
    # Random draws differ between devices, how many are drawn does not.
    for sign in (host.positive, host.negative):
        for image in range(3):
            here = sign & (host.image == image)
            assert (weights[here] > 0).sum() == (expected[here] > 0).sum()
