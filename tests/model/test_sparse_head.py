"""The RPN head at some anchors against the head everywhere."""

import torch
from small import batch, gradients, quick
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers

from frcnn.model import rpn
from frcnn.model.sparse_head import at_anchors, can_be_sparse
from samplers import Random


def dense(head: nn.Module, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All anchors' [N] logits and [N, 4] deltas in torchvision's order."""
    logits, deltas = concat_box_prediction_layers(*head(levels))
    return logits.flatten(), deltas


def test_equal_at_every_anchor_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    head = RPNHead(6, 3)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    shapes = [(5, 7), (3, 4), (1, 2), (1, 1)]
    levels = [torch.randn(3, 6, *shape, requires_grad=True) for shape in shapes]
    total = 3 * 3 * sum(height * width for height, width in shapes)
    # In no order, and one of them twice.
    rows = torch.cat([torch.randperm(total), torch.tensor([5])])
    inputs = [*levels, *head.parameters()]
    upstream = torch.randn(len(rows), 5)
    results = []
    for logits, deltas in (
        at_anchors(head, levels, rows),
        (part[rows] for part in dense(head, levels)),
    ):
        value = torch.cat([logits[:, None], deltas], 1)
        results.append((value, *torch.autograd.grad((value * upstream).sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_anchor_is_a_gradient_of_zero() -> None:
    head = RPNHead(6, 3)
    level = torch.randn(1, 6, 4, 4, requires_grad=True)
    logits, deltas = at_anchors(head, [level], torch.zeros(0, dtype=torch.int64))
    (logits.sum() + deltas.sum()).backward()
    assert (logits.shape, deltas.shape) == ((0,), (0, 4))
    assert not level.grad.any()


def test_only_the_head_that_it_copies() -> None:
    assert can_be_sparse(RPNHead(6, 3))
    assert not can_be_sparse(RPNHead(6, 3, conv_depth=2))  # fasterrcnn_resnet50_fpn_v2
    assert not can_be_sparse(nn.Sequential(RPNHead(6, 3)))


def test_a_training_step_is_the_same_sparse_and_dense(monkeypatch) -> None:
    results = []
    for share in (1.0, 0.0):
        monkeypatch.setattr(rpn, "SPARSE_SHARE", share)
        model = quick(sampler={"rpn": Random(16, 0.5)})
        torch.manual_seed(0)
        losses = model(*batch(4, 2))
        sum(losses.values()).backward()
        results.append((torch.stack(list(losses.values())), gradients(model)))
    (sparse_losses, sparse), (dense_losses, expected) = results
    torch.testing.assert_close(sparse_losses, dense_losses, rtol=1e-5, atol=1e-6)
    for name, gradient in sparse.items():
        scale = expected[name].abs().max()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 * scale + 1e-9)
