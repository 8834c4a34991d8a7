"""A tower of 3x3 convolutions whose backward pass visits only locations that have a gradient.

The box loss of RetinaNet (arXiv 1708.02002) has a gradient at the positive anchors only, and the
class loss at the anchors that the sampler kept. Each layer of the tower, from the last to the
first, spreads it by one pixel. The forward pass is the usual one. The backward pass of a layer
gathers the 3x3 neighbourhood of each location that has a gradient, and is two matrix products over
these rows. Where too many locations have one, it is the usual pass. The outputs are equal to those
of the usual pass, and the gradients are equal up to rounding.

Shape letters: I images, P locations of the zero-padded maps of all levels and images, K locations
with a gradient, C input channels and D output channels of a layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from frcnn.losses.samples import widened
from frcnn.model.modes import no_graph

# Above this share of locations the usual backward pass is used. On a CPU with AVX2 the gathered one
# took 0.8 of its time even at all locations.
SPARSE_SHARE = 0.8
Gradients = tuple[Tensor, Tensor, Tensor]  # of input, weight and bias
CHUNK = 512  # locations at a time: their neighbourhoods fit a CPU's cache


def can_be_sparse(layers: Sequence[nn.Module], device: torch.device) -> bool:
    """Whether every layer is a 3x3 convolution, all but the last with a ReLU, on a CPU.

    A GPU would have to wait for the number of locations of each layer.
    """
    *hidden, last = layers
    with_relu = all(
        isinstance(layer, nn.Sequential)
        and [type(part) for part in layer] == [nn.Conv2d, nn.ReLU]
        and _is_plain(layer[0])
        for layer in hidden
    )
    return device.type == "cpu" and with_relu and _is_plain(last)


def _is_plain(layer: nn.Module) -> bool:
    """Whether this is a 3x3 convolution with a bias and zero padding, and with no option."""
    if not isinstance(layer, nn.Conv2d) or layer.bias is None or layer.padding_mode != "zeros":
        return False
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def sparse_tower(layers: Sequence[nn.Module], levels: Sequence[Tensor]) -> list[Tensor]:
    """The tower's output at each level.

    Args:
        layers: for which ``can_be_sparse`` is true.
        levels: [I, C, H, W] features of each level.

    Returns:
        [I, D, H, W] of each level.
    """
    weights = [p for layer in layers for p in layer.parameters()]  # weight, bias, weight, ...
    return list(Tower.apply(len(levels), *levels, *weights))


class Tower(torch.autograd.Function):
    """Convolutions with a ReLU between them."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``count`` levels, then weight and bias of each layer -> the last layer's levels."""
        levels, weights, biases = tensors[:count], tensors[count::2], tensors[count + 1 :: 2]
        ctx.count, inputs = count, list(levels)
        with no_graph(levels[0].device):
            for weight, bias in zip(weights, biases, strict=True):
                outputs = [F.conv2d(x, weight, bias, padding=1) for x in inputs[-count:]]
                # The last layer has no ReLU: its output is not kept.
                inputs += [x.relu_() for x in outputs] if weight is not weights[-1] else []
        ctx.save_for_backward(*inputs, *weights)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the levels, and of weight and bias of each layer."""
        count, saved = ctx.count, ctx.saved_tensors
        number = len(saved) // (count + 1)
        inputs, weights = saved[:-number], saved[-number:]
        layers = [
            Layer(inputs[i * count : (i + 1) * count], weights[i], i > 0) for i in range(number)
        ]
        grid, found = Grid(gradients), list[Tensor]()
        given: Sequence[Tensor] = gradients
        if grid.share(given) <= SPARSE_SHARE:
            given = grid.gathered_backward(layers, given, found)
        # In the layers that are left many locations have a gradient: each layer adds some.
        while layers:
            given = _usual_backward(layers.pop(), given, found)
        return None, *given, *found


class Layer(NamedTuple):
    """A convolution, and what its backward pass needs.

    Args:
        inputs: [I, C, H, W] of each level.
        weight: [D, C, 3, 3].
        after_relu: the inputs are outputs of a ReLU.
    """

    inputs: Sequence[Tensor]
    weight: Tensor
    after_relu: bool


def _usual_backward(
    layer: Layer, gradients: Sequence[Tensor], found: list[Tensor]
) -> Sequence[Tensor]:
    """[I, D, H, W] gradients of each level -> those of the inputs.

    The gradients of weight and bias are put before those in ``found``.
    """
    weight = layer.weight.to(gradients[0].dtype)
    parts = [
        torch.ops.aten.convolution_backward(
            gradient, x.to(weight.dtype), weight, [len(weight)],
            [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True] * 3,
        )
        for gradient, x in zip(gradients, layer.inputs, strict=True)
    ]  # fmt: skip
    into, *of_layer = zip(*parts, strict=True)
    found[:0] = [torch.stack([widened(x) for x in part]).sum(0) for part in of_layer]
    if layer.after_relu:
        relu = torch.ops.aten.threshold_backward
        return [relu(x, own, 0) for x, own in zip(into, layer.inputs, strict=True)]
    return into


class Grid:
    """The locations of all levels as rows of one table, [P, C], with zero padding."""

    def __init__(self, levels: Sequence[Tensor]) -> None:
        self.shapes = [(len(x), x.shape[2] + 2, x.shape[3] + 2) for x in levels]
        self.sizes = [images * height * width for images, height, width in self.shapes]
        self.locations = sum(x[:, 0].numel() for x in levels)
        step = torch.arange(-1, 2)
        offsets = [(step[:, None] * width + step).flatten() for _, _, width in self.shapes]
        self.level = torch.arange(len(levels)).repeat_interleave(torch.tensor(self.sizes))
        self.offsets = torch.stack(offsets)  # [levels, 9] from a row to its neighbours

    def table(self, levels: Sequence[Tensor]) -> Tensor:
        """[I, C, H, W] of each level -> [P, C]."""
        padded = [F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(0, 2) for x in levels]
        return torch.cat(padded)

    def levels(self, table: Tensor) -> list[Tensor]:
        """[P, C] -> [I, C, H, W] of each level."""
        parts = zip(table.split(self.sizes), self.shapes, strict=True)
        maps = [part.unflatten(0, shape)[:, 1:-1, 1:-1] for part, shape in parts]
        return [x.contiguous().permute(0, 3, 1, 2) for x in maps]

    def share(self, levels: Sequence[Tensor]) -> float:
        """Share of the locations of [I, C, H, W] levels with a number that is not 0."""
        return sum(int(x.any(1).sum()) for x in levels) / self.locations

    def gathered_backward(
        self, layers: list[Layer], gradients: Sequence[Tensor], found: list[Tensor]
    ) -> Sequence[Tensor]:
        """Go back through the last layers while few locations have a gradient.

        Args:
            layers: all of them; those that were visited are taken away.
            gradients: [I, D, H, W] of each level, of the last layer's output.
            found: gradients of weight and bias are put before those in it.

        Returns:
            [I, C, H, W] gradients of each level, of the input of the last visited layer.
        """
        gradient = self.table(gradients)
        while layers:
            rows = torch.where(gradient.any(1))[0]
            if len(rows) > SPARSE_SHARE * self.locations:
                break
            layer = layers.pop()
            table = self.table(layer.inputs).to(gradient.dtype)
            into, *of_layer = self._gathered(gradient, table, layer.weight.to(table.dtype), rows)
            found[:0] = of_layer
            # The inputs are 0 in the padding, so no gradient is left there.
            gradient = into * (table > 0) if layer.after_relu else into
        return self.levels(gradient)

    def _gathered(self, gradient: Tensor, table: Tensor, weight: Tensor, rows: Tensor) -> Gradients:
        """[P, D] gradient, [P, C] inputs, [K] rows of a gradient -> sums in float32 at least."""
        kernel = weight.permute(0, 2, 3, 1).flatten(1)  # [D, 9C]
        into, of_kernel = widened(torch.zeros_like(table)), widened(torch.zeros_like(kernel))
        for part in rows.split(CHUNK):
            near = part[:, None] + self.offsets[self.level[part]]  # [k, 9]
            own, patches = gradient[part], F.embedding(near, table).flatten(1)
            of_kernel += own.T @ patches
            spread = (own @ kernel).unflatten(1, (9, -1)).flatten(0, 1)
            into.index_add_(0, near.flatten(), spread.to(into.dtype))
        of_weight = of_kernel.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        return into.to(table.dtype), of_weight, widened(gradient[rows]).sum(0)
