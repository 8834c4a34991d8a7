"""RoIAlign that is fast on a CPU (Mask R-CNN, arXiv 1703.06870, sec. 3).

RoIAlign is a weighted sum of feature rows: each output bin reads s x s points, each point four
pixels with bilinear weights. Written as one ``embedding_bag`` over all levels and images it uses
vectorised, multi-threaded kernels in both directions; torchvision's CPU kernel scatters its
gradient one number at a time on one thread.

Shape letters: R boxes of the batch, M = R * output bins, Q = 4 s^2 reads of a bin, T pixels of all
levels and images, C channels.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import _convert_to_roi_format, _filter_input, _setup_scales

from samplers.host import Numbers, reads_are_free
from samplers.quota import count


class FastRoIAlign(MultiScaleRoIAlign):
    """``MultiScaleRoIAlign`` with a fast CPU path; equal to 1e-4 in value and gradient.

    On other devices torchvision's own kernel pools; the host waits for the numbers of boxes of all
    levels once.
    """

    scales: list[float] | None
    map_levels: Any

    def forward(
        self,
        x: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
        on_levels: Numbers | None = None,
    ) -> Tensor:
        """[R, C, output height, output width], boxes in xyxy pixels of the resized image.

        Args:
            on_levels: what ``ask`` returned for these boxes, if it was called before.
        """
        levels = self._levels(x, image_shapes)
        if not reads_are_free(boxes[0].device):
            on_levels = on_levels or self.ask(x, boxes, image_shapes)
            return self._by_level(levels, boxes, on_levels.read()[0])
        table = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])
        pooled = self._pooled(table.float(), *self._on_levels(levels, boxes))
        pooled = pooled.to(table.dtype).unflatten(1, self.output_size)
        return pooled.permute(0, 3, 1, 2)

    def ask(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Numbers:
        """How many boxes are pooled from each level."""
        levels = self._levels(x, image_shapes)
        return Numbers(count(self._level_of(boxes, len(levels)), len(levels)))

    def _levels(self, x: dict[str, Tensor], image_shapes: list[tuple[int, int]]) -> list[Tensor]:
        """The levels that boxes are pooled from; sets their scales."""
        levels = _filter_input(x, self.featmap_names)
        # For every batch: see ``SamplingRoIHeads.outputs``.
        self.scales, self.map_levels = _setup_scales(
            levels, image_shapes, self.canonical_scale, self.canonical_level
        )
        return levels

    def _level_of(self, boxes: Sequence[Tensor], num_levels: int) -> Tensor:
        """[R] the level of each box."""
        if num_levels > 1:
            return self.map_levels(list(boxes))
        return torch.zeros(sum(map(len, boxes)), dtype=torch.int64, device=boxes[0].device)

    def _by_level(
        self, levels: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[int]
    ) -> Tensor:
        """torchvision's kernel at each level, over the ``sizes`` boxes that belong to it."""
        assert self.scales is not None  # set with the levels
        order = self._level_of(boxes, len(levels)).argsort(stable=True)
        rois = _convert_to_roi_format(list(boxes))[order]
        parts = [
            roi_align(level, part, self.output_size, scale, self.sampling_ratio)
            for level, part, scale in zip(levels, rois.split(list(sizes)), self.scales, strict=True)
        ]
        pooled = torch.cat([part.to(levels[0].dtype) for part in parts])
        return torch.empty_like(pooled).index_copy(0, order, pooled)

    @torch.no_grad()
    def _on_levels(
        self, levels: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The boxes in pixels of their level, and the feature map that each of them reads.

        Returns:
            [R, 4] boxes xyxy, and [3, R] the map's first row in the table, its height and width.
        """
        level = self._level_of(boxes, len(levels))
        sizes = torch.tensor([[f.shape[2], f.shape[3]] for f in levels])
        pixels = sizes.prod(1) * len(boxes)
        image = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(b) for b in boxes]))
        height, width = sizes[level].T
        first = (pixels.cumsum(0) - pixels)[level] + image * height * width
        scaled = torch.cat(list(boxes)).float() * torch.tensor(self.scales)[level, None]
        return scaled, torch.stack([first, height, width])

    def _pooled(self, table: Tensor, boxes: Tensor, maps: Tensor) -> Tensor:
        """[T, C] table -> [R, output bins, C]."""
        if self.sampling_ratio <= 0 and len(boxes):
            return self._pooled_adaptively(table, boxes, maps)
        samples = max(self.sampling_ratio, 1)
        pooled = WeightedRows.apply(table, *self._reads(boxes, maps, (samples, samples)))
        return pooled.unflatten(0, (-1, prod(self.output_size)))

    def _pooled_adaptively(self, table: Tensor, boxes: Tensor, maps: Tensor) -> Tensor:
        """As many points per bin as it has pixels; boxes with equal grids are pooled together."""
        sides = (boxes[:, 2:] - boxes[:, :2]).flip(1).clamp(min=1)  # height, width
        samples = (sides / torch.tensor(self.output_size)).ceil().to(torch.int64)
        grids, grid = samples.unique(dim=0, return_inverse=True)
        order = grid.argsort(stable=True)
        groups = order.split(grid.bincount().tolist())
        parts = [
            WeightedRows.apply(table, *self._reads(boxes[rows], maps[:, rows], points))
            for rows, points in zip(groups, grids.tolist(), strict=True)
        ]
        pooled = torch.cat(parts).unflatten(0, (-1, prod(self.output_size)))
        return pooled[order.argsort()]

    @torch.no_grad()
    def _reads(self, boxes: Tensor, maps: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """[M, Q] rows of the table, and [M, Q] their weights, of grids of ``samples`` (y, x)."""
        first, height, width = maps
        out_height, out_width = self.output_size
        y, weight_y = _axis(boxes[:, 1], boxes[:, 3], height, out_height, samples[0])
        x, weight_x = _axis(boxes[:, 0], boxes[:, 2], width, out_width, samples[1])
        y = first[:, None, None] + y * width[:, None, None]
        rows = y[:, :, None, :, None] + x[:, None, :, None, :]
        weights = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
        reads = 4 * samples[0] * samples[1]
        return rows.reshape(-1, reads), weights.reshape(-1, reads)


def ask_levels(
    pool: MultiScaleRoIAlign, features: dict[str, Tensor], boxes: Tensor, image_shapes: Any
) -> Numbers | None:
    """How many of the [K, 4] boxes each level has, where a GPU's host will have to know it."""
    if reads_are_free(boxes.device) or not isinstance(pool, FastRoIAlign):
        return None
    return pool.ask(features, [boxes], image_shapes)


def _axis(
    low: Tensor, high: Tensor, pixels: Tensor, bins: int, samples: int
) -> tuple[Tensor, Tensor]:
    """The reads along one axis; bilinear weights are a product of two such axes.

    Args:
        low, high: [R] edges of the boxes in feature pixels.
        pixels: [R] length of the feature map that each box reads.

    Returns:
        [R, bins, 2 * samples] pixel numbers, and their weights (0 for points that lie more than
        a pixel outside).
    """
    size = (high - low).clamp(min=1.0) / bins
    offset = torch.arange(bins)[:, None] + (torch.arange(samples) + 0.5) / samples
    point = low[:, None, None] + offset * size[:, None, None]
    last = (pixels - 1)[:, None, None]
    inside = (point >= -1) & (point <= last + 1)
    point = torch.minimum(point.clamp(min=0), last)
    below = point.floor()
    above_weight = point - below
    below = below.to(torch.int64)
    pixel = torch.stack([below, torch.minimum(below + 1, last)], -1)
    weight = torch.stack([1 - above_weight, above_weight], -1) * inside[..., None] / samples
    return pixel.flatten(2), weight.flatten(2)


class WeightedRows(torch.autograd.Function):
    """``out[m] = sum_q weights[m, q] * table[rows[m, q]]`` with a fast gradient for the table."""

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """[T, C] table, [M, Q] rows and weights -> [M, C]."""
        ctx.save_for_backward(rows, weights)
        ctx.length = len(table)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The transposed sum: each table row gathers from the bins that read it."""
        rows, weights = ctx.saved_tensors
        order = stable_order(rows.flatten())
        sizes = torch.bincount(rows.flatten(), minlength=ctx.length)
        table_gradient = F.embedding_bag(
            order // rows.shape[1],
            gradient.contiguous(),
            sizes.cumsum(0) - sizes,
            mode="sum",
            per_sample_weights=weights.flatten()[order],
        )
        return table_gradient, None, None


def stable_order(keys: Tensor) -> Tensor:
    """``keys.argsort(stable=True)`` of [n] integers in 0..2^32-1, 16 bits at a time.

    NumPy sorts 16-bit integers by counting, an order of magnitude faster than by comparing.
    """
    values = keys.numpy()
    order = np.argsort((values & 0xFFFF).astype(np.uint16), kind="stable")
    if len(values) and values.max() > 0xFFFF:
        high = (values >> 16).astype(np.uint16)[order]
        order = order[np.argsort(high, kind="stable")]
    return torch.from_numpy(order)
