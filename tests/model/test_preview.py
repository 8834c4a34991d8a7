"""What a sampler asks of the head leaves no trace, and is what the head says."""

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from small import batch, gradients, quick
from torch import Tensor, nn

from frcnn.model import Detector
from frcnn.model.modes import eval_mode, no_graph
from samplers import OHEM, Candidates


def with_a_restless_head(**options: Any) -> Detector:
    """A box head with all that a second pass could disturb: BatchNorm and dropout."""
    model = quick(**options)
    torch.manual_seed(1)
    model.roi_heads.box_head = nn.Sequential(
        nn.Flatten(),
        nn.Linear(16 * 49, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 32),
    )
    return model


def step(
    model: Detector, precision: torch.dtype | None = None
) -> tuple[list[float], dict[str, Tensor], Tensor]:
    """Losses, gradients, and where the random generator stands after a step."""
    torch.manual_seed(7)
    with nullcontext() if precision is None else torch.autocast("cpu", precision):
        losses = model(*batch(4, 2))
    sum(losses.values()).backward()
    return [value.item() for value in losses.values()], gradients(model), torch.get_rng_state()


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_step_with_ohem_is_a_step_with_its_picks(precision: torch.dtype | None) -> None:
    mined = with_a_restless_head(sampler={"rcnn": OHEM(12)})
    told = with_a_restless_head(sampler={"rcnn": lambda candidates: picked[-1]})
    picked: list[Tensor] = []
    mined.sites["rcnn"].observer = lambda name, candidates, weights: picked.append(weights)
    losses, gradient, state = step(mined, precision)
    expected, expected_gradient, expected_state = step(told, precision)
    assert picked[0].sum() == 24
    assert losses == expected
    assert gradient.keys() == expected_gradient.keys()
    assert gradient["roi_heads.box_head.1.weight"].abs().max() > 0
    for name, value in gradient.items():
        assert torch.equal(value, expected_gradient[name]), name
    for name, value in mined.state_dict().items():
        assert torch.equal(value, told.state_dict()[name]), name
    assert torch.equal(state, expected_state)  # the preview's dropout draws nothing


def candidates_of(model: Detector) -> Candidates:
    """The head's candidates in a training step."""
    seen: list[Candidates] = []
    model.sites["rcnn"].observer = lambda name, candidates, weights: seen.append(candidates)
    torch.manual_seed(7)
    model(*batch(4, 2))
    return seen[0]


def test_it_has_no_gradient_and_restores_the_modes() -> None:
    model = with_a_restless_head()
    model.roi_heads.box_head[4].eval()  # a mode that is not the root's
    modes = {name: module.training for name, module in model.named_modules()}
    candidates = candidates_of(model)
    statistics = model.roi_heads.box_head[2].running_mean.clone()
    rows = torch.arange(len(candidates.labels))[candidates.labels >= 0]
    shown = candidates.predict(rows)
    tensors = (shown.logits, shown.boxes, shown.loss, shown.class_loss)
    assert not any(tensor.requires_grad for tensor in tensors)
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model.roi_heads.box_head[2].running_mean, statistics)
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_any_rows_in_any_order_and_any_chunk(chunk: int) -> None:
    model = with_a_restless_head()
    candidates = candidates_of(model)
    rows = torch.where(candidates.labels >= 0)[0]
    expected = candidates.predict(rows)
    model.roi_heads.preview_rows = chunk
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:25]
    shown = candidates.predict(rows[order])
    for key in ("logits", "boxes", "loss", "class_loss"):
        value, whole = getattr(shown, key), getattr(expected, key)
        torch.testing.assert_close(value, whole[order], rtol=1e-4, atol=1e-4)
    assert len(candidates.predict(rows[:0]).loss) == 0


def test_it_is_the_head_in_eval_mode() -> None:
    model = with_a_restless_head()
    candidates = candidates_of(model)
    rows = torch.where(candidates.positive)[0]
    shown = candidates.predict(rows)
    caught: list[Tensor] = []
    model.roi_heads.box_roi_pool.register_forward_hook(lambda m, i, out: caught.append(out))
    candidates.predict(rows)
    model.eval()
    with torch.no_grad():
        logits, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(caught[0]))
    torch.testing.assert_close(shown.logits, logits)
    labels, coder = candidates.labels[rows], model.roi_heads.box_coder
    own = deltas.unflatten(1, (-1, 4))[torch.arange(len(rows)), labels]
    torch.testing.assert_close(shown.boxes, coder.decode_single(own, candidates.boxes[rows]))
    class_loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(shown.class_loss, class_loss)
    target = coder.encode_single(candidates.gt_boxes[candidates.gt[rows]], candidates.boxes[rows])
    box_loss = nn.functional.smooth_l1_loss(own, target, beta=1 / 9, reduction="none").sum(1)
    torch.testing.assert_close(shown.loss, class_loss + box_loss)


def test_the_rpn_shows_what_it_has_computed() -> None:
    model = quick()
    seen: dict[str, Candidates] = {}
    dense: list[Tensor] = []
    model.sites["rpn"].observer = lambda name, candidates, weights: seen.update({name: candidates})
    model.rpn.head.register_forward_hook(lambda m, i, out: dense.extend(out[0]))
    model(*batch(4, 2))
    # [I, A, H, W] a level -> images stacked, each with its levels, places, anchors.
    flat = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in dense], 1).flatten()
    rows = torch.tensor([0, 5, len(flat) - 1, len(flat) // 2 + 3])
    rows = rows[seen["rpn"].labels[rows] >= 0]
    logits = seen["rpn"].predict(rows).logits
    assert len(rows) > 2
    assert not logits.requires_grad
    assert logits.tolist() == [[0.0, x] for x in flat[rows].tolist()]


def test_modes_are_restored_after_a_failure() -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    with pytest.raises(RuntimeError), eval_mode(module):
        assert not any(part.training for part in module.modules())
        raise RuntimeError
    assert all(part.training for part in module.modules())


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_stays_as_it_was(enabled: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        with no_graph(torch.device("cpu")):
            assert not torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu") == enabled
            assert not torch.is_autocast_cache_enabled()
        assert torch.is_autocast_cache_enabled()
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_step_frees_its_features_without_the_garbage_collector() -> None:
    model = quick(sampler={"rpn": OHEM(8), "rcnn": OHEM(8)})
    alive: list[weakref.ref] = []
    model.backbone.register_forward_hook(
        lambda m, i, out: alive.extend(weakref.ref(level) for level in out.values())
    )
    for site in model.sites.values():
        site.observer = lambda name, candidates, weights: alive.append(weakref.ref(candidates))
    gc.collect()
    gc.disable()
    try:
        losses = model(*batch(3, 2))
        sum(losses.values()).backward()
        assert len(alive) == 7
        del losses
        assert [ref() is None for ref in alive] == [True] * 7
    finally:
        gc.enable()
