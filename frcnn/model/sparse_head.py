"""The RPN head at some anchors only, with gradient.

Proposals need the head everywhere but no gradient; the loss needs a gradient at a few hundred
anchors of tens of thousands. So the dense pass runs without a graph and the kept anchors are
computed once more from their 3x3 neighbourhoods. The result is equal up to rounding, and the
backward pass needs no dense convolution.

Shape letters: K kept anchors, A anchors per location, P padded pixels of all levels and images,
C channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead


def can_be_sparse(head: nn.Module) -> bool:
    """Whether this is torchvision's head with a single 3x3 convolution."""
    return isinstance(head, RPNHead) and len(head.conv) == 1


def at_anchors(head: RPNHead, levels: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """The head's output at anchors numbered as torchvision orders them.

    Args:
        levels: [I, C, H, W] features of each level.
        rows: [K] anchors of the batch: images, in each the levels, in each y, x, anchor.

    Returns:
        [K] logits and [K, 4] deltas.
    """
    anchors = head.cls_logits.out_channels
    neighbours, anchor = _neighbours([level.shape for level in levels], rows, anchors)
    table = torch.cat([F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(0, 2) for x in levels])
    patches = F.embedding(neighbours, table).flatten(1)
    convolution = head.conv[0][0]
    kernel = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    hidden = head.conv[0][1](F.linear(patches, kernel, convolution.bias))
    logits = F.linear(hidden, head.cls_logits.weight.flatten(1), head.cls_logits.bias)
    deltas = F.linear(hidden, head.bbox_pred.weight.flatten(1), head.bbox_pred.bias)
    index = torch.arange(len(rows), device=rows.device)
    return logits[index, anchor], deltas.unflatten(1, (anchors, 4))[index, anchor]


def _neighbours(shapes: Sequence[torch.Size], rows: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """The 3x3 neighbourhood of each anchor's location in the padded table.

    Returns:
        [K, 9] rows of the table, in the order of the kernel's weights, and [K] the number of each
        anchor at its location.
    """
    images = shapes[0][0]
    sizes = torch.tensor([shape[2:] for shape in shapes])
    height, width = sizes.T.to(rows.device, non_blocking=True)
    image, level, y, x, anchor = _located(height, width, rows, anchors)
    row_length = width + 2
    pixels = (height + 2) * row_length  # of one image at each level
    first = (images * _starts(pixels))[level] + image * pixels[level]
    # Padding moves every pixel by one: there the neighbourhood of (y, x) begins at (y, x).
    row_length = row_length[level]
    corner = first + y * row_length + x
    step = torch.arange(3, device=rows.device)
    offset = step[:, None] * row_length[:, None, None] + step  # [K, 3, 3]
    return (corner[:, None, None] + offset).flatten(1), anchor


def _located(height: Tensor, width: Tensor, rows: Tensor, anchors: int) -> tuple[Tensor, ...]:
    """[K] image, level, y, x, and number of each anchor at its location.

    Args:
        height, width: [levels] of the feature maps.
    """
    count = height * width * anchors
    per_image = count.sum()
    image, row = rows // per_image, rows % per_image
    level = torch.searchsorted(count.cumsum(0), row, right=True)
    row = row - _starts(count)[level]
    pixel, anchor = row // anchors, row % anchors
    return image, level, pixel // width[level], pixel % width[level], anchor


def _starts(counts: Tensor) -> Tensor:
    """Where each part begins if parts of these lengths are joined."""
    return counts.cumsum(0) - counts
