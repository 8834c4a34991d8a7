"""Anchors: their sizes from configuration, and the level of each.

Shape letters: N anchors per image, L levels of the feature pyramid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator

from frcnn.errors import ConfigError
from frcnn.losses.samples import widened

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width, in every detector of torchvision's


def check_anchor_sizes(name: str, levels: int | None, sizes: Sequence[float]) -> None:
    """Raise ConfigError unless there is one anchor size for each of the network's levels."""
    if levels is None:
        raise ConfigError(f"model.anchor_sizes: {name} has anchors of its own, choose null")
    if len(sizes) != levels:
        raise ConfigError(
            f"model.anchor_sizes: expected {levels} sizes, one per level, got {len(sizes)}"
        )


def one_anchor_size_per_level(sizes: Sequence[float]) -> AnchorGenerator:
    """One anchor size at each level and three aspect ratios, as in torchvision's ResNet-FPN."""
    return AnchorGenerator(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes))


def anchors_of(
    generator: AnchorGenerator, images: ImageList, levels: Sequence[Tensor]
) -> list[Tensor]:
    """[N, 4] anchors of each image, float32 at least.

    torchvision makes anchors in the dtype of the features, and objects are compared with them in
    that dtype. In bf16 the coordinates of an image of 1,024 pixels and more would be rounded to
    multiples of 8.
    """
    shapes = [widened(level[:, :0]) for level in levels]  # only size, dtype and device are read
    return generator(images, shapes)


def anchor_levels(
    images: ImageList, levels: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """The level of each anchor of an image, and the levels' strides in pixels.

    Args:
        levels: [I, C, H_l, W_l] features of each level.
        sizes: anchors per image at each level, N in all.

    Returns:
        [N] int64 in 0..L-1, and L strides.
    """
    level = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    height = images.tensors.shape[-2]
    strides = [height // features.shape[-2] for features in levels]
    return level.to(levels[0].device, non_blocking=True), strides


def retinanet_anchors(sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> AnchorGenerator:
    """Several anchor sizes at each level, each with all aspect ratios."""
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))


def scaled_sizes(
    sizes: Sequence[float], scales: Sequence[float], whole: bool
) -> list[tuple[float, ...]]:
    """The anchor sizes of each level: its size times each scale.

    Args:
        whole: cut to whole pixels, as torchvision does.

    >>> scaled_sizes([32], [1, 2 ** (1 / 3), 2 ** (2 / 3)], whole=True)
    [(32, 40, 50)]

    Raises:
        ConfigError: a size is cut to nothing.
    """
    if whole and min(sizes) * min(scales) < 1:
        raise ConfigError(
            f"model.anchor_scales: an anchor of {min(sizes)} x {min(scales)} pixels is cut to 0; "
            "choose larger ones or model.whole_anchor_sizes=false"
        )
    return [tuple(int(size * s) if whole else size * s for s in scales) for size in sizes]
