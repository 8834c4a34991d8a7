"""The parts of Faster R-CNN and RetinaNet that depend on the architecture.

These are the levels, the head, the anchors and the class biases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    LastLevelMaxPool,
    LastLevelP6P7,
)
from torchvision.ops.misc import Conv2dNormActivation

from frcnn.errors import ConfigError
from frcnn.model.anchors import retinanet_anchors

Biases = Mapping[str, Tensor | None]
ROI_SIZE = 7  # cells of a pooled box along each side, in every detector of torchvision's
STOCK_ANCHORS, STOCK_DEPTH = 9, 4  # anchors per location and layers of torchvision's RetinaNet
C5_LEVEL = 5  # the pyramid level of stride 32, the last one of a ResNet


class Architecture(Protocol):
    """How a detector is built over a pyramid of feature maps.

    Attributes:
        prefix: of the names of its networks.
        predictor: prefix of the parameters that depend on the classes.
    """

    prefix: str
    predictor: str

    @property
    def first_stage(self) -> int:
        """Stage of the backbone with the pyramid's first feature map, 1 (stride 4) to 4."""

    @property
    def levels(self) -> int:
        """Levels of the pyramid."""

    def extra_levels(self, channels: int) -> ExtraFPNBlock:
        """What adds the pyramid's coarsest levels."""

    def build_over(
        self, backbone: Any, columns: int, names: Sequence[str] = (), **options: Any
    ) -> nn.Module:
        """The detector over a backbone, a module with ``out_channels``.

        Args:
            columns: C + 1.
            names: of the backbone's levels, if it is not a ResNet-FPN or a timm network.
            options: arguments of torchvision's class.
        """

    def check_torchvision(self, name: str, weights: str | None) -> None:
        """Raise ConfigError unless torchvision's own network can have these parts.

        Args:
            weights: the name of torchvision's weights, if they are to be loaded.
        """

    def replace_parts(self, model: nn.Module) -> None:
        """Give a detector that torchvision has built this architecture's parts."""

    def columns(self, model: nn.Module) -> int:
        """C + 1 of a detector."""

    def reset_predictor(self, model: nn.Module, columns: int) -> None:
        """Give a detector a new predictor for other classes."""

    def set_biases(self, model: nn.Module, biases: Biases, predictor_only: bool = False) -> None:
        """Start the class logits of each site at its [C+1] bias; None leaves them as they are.

        Args:
            predictor_only: only those that depend on the classes.
        """


@dataclass(frozen=True)
class FasterRCNNArchitecture:
    """Faster R-CNN: levels of stride 4 to 32 and a pooled one; see ``Architecture``.

    Args:
        representation_size: of the box head's two hidden layers; None = all as in torchvision.
    """

    representation_size: int | None = None

    prefix = "fasterrcnn"
    predictor = "roi_heads.box_predictor."
    first_stage = 1
    levels = 5

    def extra_levels(self, channels: int) -> ExtraFPNBlock:
        return LastLevelMaxPool()

    def build_over(
        self, backbone: Any, columns: int, names: Sequence[str] = (), **options: Any
    ) -> FasterRCNN:
        if names:
            if len(names) != self.levels and "rpn_anchor_generator" not in options:
                raise ConfigError(
                    f"model.anchor_sizes: the backbone has {len(names)} levels, give sizes"
                )
            # The level "pool" is used by the RPN only.
            pooled = [name for name in names if name != "pool"]
            pool = MultiScaleRoIAlign(pooled, output_size=ROI_SIZE, sampling_ratio=2)
            options = {"box_roi_pool": pool} | options
        size = self.representation_size
        if size is None:
            return FasterRCNN(backbone, columns, **options)
        return FasterRCNN(
            backbone,
            box_head=TwoMLPHead(backbone.out_channels * ROI_SIZE**2, size),
            box_predictor=FastRCNNPredictor(size, columns),
            **options,
        )

    def check_torchvision(self, name: str, weights: str | None) -> None:
        if self.representation_size is not None:
            raise ConfigError(f"model.representation_size: {name} is torchvision's own, with 1024")

    def replace_parts(self, model: FasterRCNN) -> None:
        """Nothing to do: torchvision's builders take all options."""

    def columns(self, model: FasterRCNN) -> int:
        return model.roi_heads.box_predictor.cls_score.out_features

    def reset_predictor(self, model: FasterRCNN, columns: int) -> None:
        features = model.roi_heads.box_predictor.cls_score.in_features
        model.roi_heads.box_predictor = FastRCNNPredictor(features, columns)

    @torch.no_grad()
    def set_biases(self, model: FasterRCNN, biases: Biases, predictor_only: bool = False) -> None:
        """The RPN's bias is [2], of its logits ``[0, x]``."""
        rpn, rcnn = biases["rpn"], biases["rcnn"]
        if rpn is not None and not predictor_only:
            model.rpn.head.cls_logits.bias.fill_(rpn[1] - rpn[0])
        if rcnn is not None:
            model.roi_heads.box_predictor.cls_score.bias.copy_(rcnn)


@dataclass(frozen=True)
class RetinaNetArchitecture:
    """RetinaNet: levels of stride 8 to 128; see ``Architecture``.

    Args:
        sizes: sides of the square anchors of each level in pixels.
        ratios: height over width of the anchors.
        first_level, last_level: l of the pyramid's levels of stride 2^l.
        head_depth: convolutions in each tower of the head.
        head_width: their channels; None = those of the pyramid.
    """

    sizes: Sequence[Sequence[float]]
    ratios: Sequence[float]
    first_level: int = 3
    last_level: int = 7
    head_depth: int = 4
    head_width: int | None = None

    prefix = "retinanet"
    predictor = "head.classification_head.cls_logits."

    @property
    def first_stage(self) -> int:
        return self.first_level - 1

    @property
    def levels(self) -> int:
        return self.last_level - self.first_level + 1

    def extra_levels(self, channels: int) -> ExtraFPNBlock:
        if self.last_level == C5_LEVEL + 2:
            return LastLevelP6P7(channels, channels)
        return FewerExtraLevels(channels, self.last_level - C5_LEVEL)

    def build_over(
        self, backbone: Any, columns: int, names: Sequence[str] = (), **options: Any
    ) -> RetinaNet:
        if names and len(names) != self.levels:
            raise ConfigError(
                f"model.first_level, model.last_level: the backbone has {len(names)} levels, "
                f"not {self.levels}"
            )
        head = self._head(backbone.out_channels, columns)
        return RetinaNet(backbone, columns, anchor_generator=self._anchors(), head=head, **options)

    def check_torchvision(self, name: str, weights: str | None) -> None:
        if (self.first_level, self.last_level) != (3, 7):
            raise ConfigError(
                f"model.first_level, model.last_level: {name} is torchvision's own, with 3 and 7"
            )
        if weights is not None and not self._head_is_stock:
            raise ConfigError(
                f"model.weights: {weights} is for {STOCK_ANCHORS} anchors per location and a head "
                f"of {STOCK_DEPTH} layers of 256 channels"
            )

    def replace_parts(self, model: RetinaNet) -> None:
        model.anchor_generator = self._anchors()
        if not self._head_is_stock:
            layers = model.head.classification_head.conv[0]
            normalized = any(isinstance(layer, nn.GroupNorm) for layer in layers)
            norm = partial(nn.GroupNorm, 32) if normalized else None
            model.head = self._head(model.backbone.out_channels, self.columns(model), norm)

    def columns(self, model: RetinaNet) -> int:
        return model.head.classification_head.num_classes

    def reset_predictor(self, model: RetinaNet, columns: int) -> None:
        head = model.head.classification_head
        new = RetinaNetHead(head.cls_logits.in_channels, head.num_anchors, columns)
        head.cls_logits = new.classification_head.cls_logits
        head.num_classes = columns

    @torch.no_grad()
    def set_biases(self, model: RetinaNet, biases: Biases, predictor_only: bool = False) -> None:
        bias, head = biases["dense"], model.head.classification_head
        if bias is not None:
            head.cls_logits.bias.copy_(bias.repeat(head.num_anchors))

    def _anchors(self) -> AnchorGenerator:
        return retinanet_anchors(self.sizes, self.ratios)

    @property
    def _anchors_per_location(self) -> int:
        return len(self.ratios) * len(self.sizes[0])

    @property
    def _head_is_stock(self) -> bool:
        shape = (self._anchors_per_location, self.head_depth, self.head_width)
        return shape == (STOCK_ANCHORS, STOCK_DEPTH, None)

    def _head(self, channels: int, columns: int, norm: Any = None) -> RetinaNetHead:
        """torchvision's head with ``head_depth`` convolutions of ``head_width`` channels."""
        width = self.head_width or channels
        head = RetinaNetHead(width, self._anchors_per_location, columns, norm)
        if (width, self.head_depth) != (channels, STOCK_DEPTH):
            inputs = [channels] + [width] * (self.head_depth - 1)
            for tower in (head.classification_head, head.regression_head):
                layers = [Conv2dNormActivation(own, width, norm_layer=norm) for own in inputs]
                tower.conv = nn.Sequential(*layers).apply(_start_small)
        return head


class FewerExtraLevels(ExtraFPNBlock):
    """RetinaNet's level P6 alone, from P5, or none.

    Args:
        count: 0 or 1.
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.p6 = LastLevelP6P7(channels, channels).p6 if count else None  # starts as torchvision's

    def forward(
        self, results: list[Tensor], inputs: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """The levels and their names, with those that are added."""
        if self.p6 is None:
            return results, names
        return [*results, self.p6(results[-1])], [*names, "p6"]


def _start_small(layer: nn.Module) -> None:
    """Start a convolution as RetinaNet's head does: N(0, 0.01), bias 0."""
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
