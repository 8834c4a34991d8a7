"""Builds a torchvision Faster R-CNN whose two sites run through samplers and losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from frcnn.errors import ConfigError
from frcnn.losses import BoxLoss, ClassLoss, CrossEntropy, SmoothL1
from frcnn.model.backbones import NAMES, STOCK, Width, build_base
from frcnn.model.roi_align import FastRoIAlign
from frcnn.model.roi_heads import SamplingRoIHeads
from frcnn.model.rpn import SamplingRPN
from frcnn.sites.assigners.max_iou import Matcher
from frcnn.sites.site import Site
from samplers import Random, Sampler

ROI_ALIGN = ("fast", "torchvision")
# torchvision's names for what the samplers say here.
BUDGETS = {
    f"{site}_{part}"
    for site in ("rpn", "box")
    for part in ("batch_size_per_image", "positive_fraction")
}
RESNET_LEVELS = 5  # strides 4 to 64


class Detector(FasterRCNN):
    """A torchvision Faster R-CNN with the same parameters, and a ``Site`` at RPN and RCNN head.

    In training mode ``detector(images, targets)`` returns the four losses, as torchvision's does.
    In eval mode ``detector(images)`` returns detections, and ``detector(images, targets)`` the
    pair (detections, losses). A target has "boxes" [G, 4] xyxy pixels and "labels" [G] in 1..C,
    and may have "ignore" [J, 4], areas where background is no example, and "seed", from which
    the samplers draw for this image (without it they draw from torch's global generator).
    """

    def __init__(self, base: FasterRCNN, rpn: Site, rcnn: Site) -> None:
        # The modules stay torchvision's, with the numbers it gave them: only their class changes.
        base.rpn.__class__ = SamplingRPN
        base.rpn.site = rpn
        base.roi_heads.__class__ = SamplingRoIHeads
        base.roi_heads.site = rcnn
        base.transform.__class__ = Transform
        GeneralizedRCNN.__init__(self, base.backbone, base.rpn, base.roi_heads, base.transform)

    @property
    def sites(self) -> tuple[Site, Site]:
        """The RPN's and the RCNN head's."""
        return self.rpn.site, self.roi_heads.site

    def loss_states(self) -> dict[str, dict[str, Any]]:
        """The states of the losses that have one, by site and part.

        They are no part of ``state_dict``, whose names are torchvision's.
        """
        return {
            name: loss.state_dict()
            for name, loss in self._losses().items()
            if hasattr(loss, "state_dict")
        }

    def load_loss_states(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Go on from ``loss_states``."""
        losses = self._losses()
        for name, state in states.items():
            losses[name].load_state_dict(state)

    def _losses(self) -> dict[str, Any]:
        parts = ("class_loss", "box_loss")
        return {f"{site.name}.{part}": getattr(site, part) for site in self.sites for part in parts}

    def eager_outputs(self, losses: dict[str, Tensor], detections: list[dict[str, Tensor]]) -> Any:
        """What ``forward`` returns (torchvision's hook)."""
        if self.training:
            return losses
        return (detections, losses) if losses else detections


class Transform(GeneralizedRCNNTransform):
    """torchvision's resizing, which takes the ignore areas along with the boxes.

    Mean and deviation go to a GPU once, not twice an image.
    """

    def normalize(self, image: Tensor) -> Tensor:
        """[3, H, W] less the mean, by the standard deviation of each channel."""
        if not image.is_floating_point():
            return super().normalize(image)  # refuses it
        known = self.__dict__.get("_statistics")
        if known is None or known.device != image.device or known.dtype != image.dtype:
            pair = torch.tensor([self.image_mean, self.image_std])
            self._statistics = pair.to(image)[:, :, None, None]
        mean, deviation = self._statistics
        return (image - mean) / deviation

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple:
        """Resize one [3, H, W] image and the boxes of its target."""
        before = list(image.shape[-2:])
        least = 1 + max(before) // self.max_size
        if min(before) < least:  # made to fit, a strip this thin would have no pixel left
            size = [max(side, least) for side in before]
            image = F.interpolate(image[None], size)[0]
            if target is not None:
                target = target | {"boxes": resize_boxes(target["boxes"], before, size)}
        image, target = super().resize(image, target)
        if target is not None and "ignore" in target:
            target["ignore"] = resize_boxes(target["ignore"], before, list(image.shape[-2:]))
        return image, target


def build_detector(
    num_classes: int,
    name: str = "fasterrcnn_resnet50_fpn",
    *,
    weights: str | None = None,
    weights_backbone: str | None = None,
    trainable_backbone_layers: int | None = None,
    fpn_channels: int = STOCK.fpn_channels,
    representation_size: int = STOCK.representation_size,
    backbone_width: float = STOCK.backbone_width,
    anchor_sizes: Sequence[float] | None = None,
    roi_align: str = "fast",
    ignore_ioa: float = 0.5,
    rpn_sampler: Sampler | None = None,
    rcnn_sampler: Sampler | None = None,
    rpn_loss: ClassLoss | None = None,
    rcnn_loss: ClassLoss | None = None,
    rpn_box_loss: BoxLoss | None = None,
    rcnn_box_loss: BoxLoss | None = None,
    rpn_fg_iou_thresh: float = 0.7,
    rpn_bg_iou_thresh: float = 0.3,
    box_fg_iou_thresh: float = 0.5,
    box_bg_iou_thresh: float = 0.5,
    **torchvision_options: Any,
) -> Detector:
    """A detector from plain values. Without samplers and losses it is stock Faster R-CNN.

    Args:
        num_classes: C + 1, background counted, as in torchvision.
        name: a builder of ``torchvision.models.detection``, or ``fasterrcnn_resnet18_fpn``,
            ``..._resnet34_fpn``, ``..._resnet101_fpn``.
        weights: None, the name of torchvision's detector weights ("COCO_V1", "DEFAULT"), or a file.
        weights_backbone: None, or the name of torchvision's ImageNet weights; ignored with weights.
        trainable_backbone_layers: backbone stages that train, counted from the last; None = three
            with named weights (whose BatchNorm is frozen, as in torchvision), else all.
        fpn_channels: of every pyramid level and the RPN's convolution; other than 256 for
            ResNet-18, 34 and 101 only.
        representation_size: of the box head's two hidden layers; other than 1024 for the same.
        backbone_width: times the channels of every layer of the ResNet, above 0; other than 1 for
            the same, from scratch or a file.
        anchor_sizes: side of the square anchor of each of the five levels of a ResNet-FPN in
            pixels; None = torchvision's.
        roi_align: "fast" (on a CPU; torchvision's kernel elsewhere) or "torchvision".
        ignore_ioa: background that lies in an ignore area by more than this share is ignored.
        torchvision_options: further arguments of torchvision's ``FasterRCNN``: min_size, max_size,
            rpn_pre_nms_top_n_train, box_score_thresh, ...

    Raises:
        UserError: weights that are not there or do not fit; ConfigError: an unknown name, anchor
            sizes that this network has no levels for, a sampler's budget, or a loss that cannot
            serve at its site or holds numbers for other classes.
        ValueError: thresholds out of order.
    """
    if roi_align not in ROI_ALIGN:
        raise ConfigError(f"model.roi_align: {roi_align!r} is not one of {', '.join(ROI_ALIGN)}")
    if name not in NAMES:
        raise ConfigError(f"model.name: {name!r} is not one of {', '.join(NAMES)}")
    if BUDGETS & torchvision_options.keys():
        raise ConfigError(f"the samplers hold the budgets: {', '.join(sorted(BUDGETS))} do nothing")
    if anchor_sizes is not None:
        check_anchor_sizes(name, anchor_sizes)
        torchvision_options["rpn_anchor_generator"] = one_anchor_size_a_level(anchor_sizes)
    rpn_loss, rcnn_loss = rpn_loss or CrossEntropy(), rcnn_loss or CrossEntropy()
    rpn_box_loss, rcnn_box_loss = rpn_box_loss or SmoothL1(), rcnn_box_loss or SmoothL1()
    check_fit("rpn", rpn_loss, rpn_box_loss)
    check_fit("rcnn", rcnn_loss, rcnn_box_loss)
    base = build_base(
        name,
        num_classes,
        weights,
        weights_backbone,
        trainable_backbone_layers,
        torchvision_options,
        biases=(initial_bias("rpn", rpn_loss, 2), initial_bias("rcnn", rcnn_loss, num_classes)),
        width=Width(fpn_channels, representation_size, backbone_width),
    )
    if roi_align == "fast":
        base.roi_heads.box_roi_pool.__class__ = FastRoIAlign
    return Detector(
        base,
        Site(
            "rpn",
            Matcher(rpn_fg_iou_thresh, rpn_bg_iou_thresh, keep_best=True, ignore_ioa=ignore_ioa),
            rpn_sampler or Random(256, 0.5),
            rpn_loss,
            rpn_box_loss,
            base.rpn.box_coder,
        ),
        Site(
            "rcnn",
            Matcher(box_fg_iou_thresh, box_bg_iou_thresh, ignore_ioa=ignore_ioa),
            rcnn_sampler or Random(512, 0.25),
            rcnn_loss,
            rcnn_box_loss,
            base.roi_heads.box_coder,
        ),
    )


def check_fit(site: str, *losses: ClassLoss | BoxLoss) -> None:
    """Raise ConfigError if the definition of a loss forbids it at this site."""
    for loss in losses:
        reason = getattr(loss, "unfit", {}).get(site)
        if reason is not None:
            raise ConfigError(f"{type(loss).__name__} cannot serve at the {site}: {reason}")


def initial_bias(site: str, loss: ClassLoss, columns: int) -> Tensor | None:
    """The bias that a site's last layer starts with; ConfigError if the loss does not fit it."""
    try:
        return loss.initial_bias(columns)
    except ValueError as error:
        raise ConfigError(f"{type(loss).__name__} at the {site}: {error}") from error


def check_anchor_sizes(name: str, sizes: Sequence[float]) -> None:
    """Raise ConfigError unless this network takes one anchor size at each of so many levels."""
    if "resnet" not in name:
        raise ConfigError(f"model.anchor_sizes: {name} has anchors of its own, choose null")
    if len(sizes) != RESNET_LEVELS:
        raise ConfigError(
            f"model.anchor_sizes: expected {RESNET_LEVELS} sizes, one a level, got {len(sizes)}"
        )


def one_anchor_size_a_level(sizes: Sequence[float]) -> AnchorGenerator:
    """One anchor size at each level and three aspect ratios, as in torchvision's ResNet-FPN."""
    return AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
