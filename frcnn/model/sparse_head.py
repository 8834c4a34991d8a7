"""The RPN head at some anchors only, with gradient.

Proposals need the head everywhere but no gradient; the loss needs a gradient at a few hundred
anchors of tens of thousands. So the dense pass runs without a graph and the kept anchors are
computed once more from their 3x3 neighbourhoods: equal up to rounding, without the two dense
convolutions of a backward pass.

Shape letters: K kept anchors, A anchors a location, P padded pixels of all levels and images,
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
    here = torch.arange(len(rows), device=rows.device)
    return logits[here, anchor], deltas.unflatten(1, (anchors, 4))[here, anchor]


def _neighbours(shapes: Sequence[torch.Size], rows: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """[K, 9] rows of the padded table around each anchor, in kernel order, and [K] its number."""
    images = shapes[0][0]
    height, width = torch.tensor([[s[2], s[3]] for s in shapes]).T.to(
        rows.device, non_blocking=True
    )
    count = height * width * anchors
    padded = (height + 2) * (width + 2)
    image, row = rows // count.sum(), rows % count.sum()
    level = torch.searchsorted(count.cumsum(0), row, right=True)
    row = row - (count.cumsum(0) - count)[level]
    location, anchor = row // anchors, row % anchors
    y, x = location // width[level], location % width[level]
    first = (images * (padded.cumsum(0) - padded))[level] + image * padded[level]
    step = torch.arange(3, device=rows.device)
    # Padding moves every pixel by one, so the neighbourhood of (y, x) begins at (y, x) there.
    ys, xs = y[:, None] + step, x[:, None] + step
    table_rows = first[:, None, None] + ys[:, :, None] * (width[level] + 2)[:, None, None]
    return (table_rows + xs[:, None, :]).flatten(1), anchor
