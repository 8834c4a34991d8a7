"""torchvision's box head of two fully connected layers, with less work around its first product.

fc6 is the largest product of the head: [R, 49 * C] pooled rows times [49 * C, F] weights.

Shape letters: N candidates of a batch, R rows that are pooled, K of them that are kept, C channels,
H x W bins of a pooled row, F features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead


class FastTwoMLPHead(TwoMLPHead):
    """``TwoMLPHead``, with the same parameters, that takes pooled rows in either memory format.

    ``FastRoIAlign`` returns channels-last rows. The head then permutes fc6's weight, F rows, and
    not the pooled rows, of which a training step has 512 per image and a preview 2,000.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, H, W] pooled rows -> [R, F]."""
        return self.after_fc6(self.fc6_of(x))

    def fc6_of(self, x: Tensor) -> Tensor:
        """[R, C, H, W] pooled rows -> [R, F], fc6's output."""
        rows, weight = self._factors(x)
        return F.linear(rows, weight, self.fc6.bias)

    def after_fc6(self, values: Tensor) -> Tensor:
        """[R, F] fc6's output -> [R, F] the head's."""
        return F.relu(self.fc7(F.relu(values)))

    def gradient_of_fc6(self, x: Tensor, values: Tensor) -> Tensor:
        """``fc6_of(x)``, whose [R, F] values are given, with its gradient."""
        rows, weight = self._factors(x.to(values.dtype))
        return KnownLinear.apply(rows, weight, self.fc6.bias, values)

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, C * H * W] rows and fc6's weight, both in the order in which x lies in memory."""
        weight = self.fc6.weight.to(x.dtype)
        if x.is_contiguous(memory_format=torch.channels_last):
            weight = weight.unflatten(1, x.shape[1:]).permute(0, 2, 3, 1).flatten(1)
            x = x.permute(0, 2, 3, 1)
        return x.flatten(1), weight


class KnownLinear(torch.autograd.Function):
    """``F.linear(x, weight, bias)`` where its values are known: no product, the usual gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor) -> Tensor:
        """[K, I] rows, [F, I] weight, [F] bias, [K, F] values -> the values."""
        ctx.save_for_backward(x, weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        """Gradients of x (where it needs one), weight and bias."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        return (
            gradient @ weight if wants_x else None,
            gradient.T @ x if wants_weight else None,
            gradient.sum(0),
            None,
        )


class PreviewedRows:
    """A box head in one pass; what it computes in previews serves the kept rows too.

    OHEM and PISA preview all N proposals of a batch and keep K of them, a quarter: the pass with
    gradient does not repeat fc6's product for these. A head of another class may hold dropout or
    BatchNorm, whose outputs differ between the two passes: it computes everything again.
    """

    def __init__(self, head: nn.Module, count: int) -> None:
        self.head, self.count = head, count
        self.values: Tensor | None = None  # [N, F]
        self.known = torch.zeros(count, dtype=torch.bool)

    def preview(self, rows: Tensor, pooled: Tensor) -> Tensor:
        """The head at [R] candidates, without gradient."""
        # On a GPU the product is cheap, and to ask which rows are known would make the host wait.
        if not isinstance(self.head, FastTwoMLPHead) or pooled.device.type != "cpu":
            return self.head(pooled)
        values = self.head.fc6_of(pooled)
        if self.values is None:
            self.values = values.new_empty(self.count, values.shape[1])
        self.values[rows] = values
        self.known[rows] = True
        return self.head.after_fc6(values)

    def __call__(self, rows: Tensor, pooled: Tensor) -> Tensor:
        """The head at [K] candidates, with gradient."""
        if self.values is None or not self.known[rows].all():
            return self.head(pooled)
        assert isinstance(self.head, FastTwoMLPHead)
        return self.head.after_fc6(self.head.gradient_of_fc6(pooled, self.values[rows]))
