"""Builds a torchvision Faster R-CNN whose RPN and RCNN head are sites."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from frcnn.errors import ConfigError
from frcnn.losses import BoxLoss, ClassLoss
from frcnn.model.backbones import NAMES, STOCK, Width, build_base
from frcnn.model.roi_align import FastRoIAlign
from frcnn.model.roi_heads import SamplingRoIHeads
from frcnn.model.rpn import SamplingRPN
from frcnn.model.sites import add_sites, initial_bias, make_site, parts_by_site, refer_to_site
from frcnn.sites.assigners import Assigner
from frcnn.sites.site import Site
from frcnn.sites.weighers import Weigher
from samplers import Sampler

ROI_ALIGN = ("fast", "torchvision")
SITES = {"rpn": "rpn", "rcnn": "rcnn"}  # name -> kind, in the order in which the network meets them
NONE: Mapping[str, Any] = MappingProxyType({})
# Arguments of torchvision's whose work samplers and assigners do.
SITES_OPTIONS = {
    f"{site}_{part}"
    for site in ("rpn", "box")
    for part in ("batch_size_per_image", "positive_fraction", "fg_iou_thresh", "bg_iou_thresh")
}
RESNET_LEVELS = 5  # strides 4 to 64


class Detector(FasterRCNN):
    """A torchvision Faster R-CNN with the same parameters, and a ``Site`` at RPN and RCNN head.

    In training mode ``detector(images, targets)`` returns the named loss terms, as torchvision's
    does. In eval mode ``detector(images)`` returns detections, and ``detector(images, targets)``
    the pair (detections, terms of the validation loss). A target has "boxes" [G, 4] xyxy pixels
    and "labels" [G] in 1..C, and may have "ignore" [J, 4], areas where background is no example,
    and "seed", from which the samplers draw for this image (without it they draw from torch's
    global generator).

    Attributes:
        sites: by name, in the order in which the network meets them. Their parameters are the
            detector's; their states are not in ``state_dict``, whose names are torchvision's.
    """

    def __init__(self, base: FasterRCNN, sites: Mapping[str, Site], append_objects: bool) -> None:
        # The modules stay torchvision's, with its options: only their class changes.
        base.rpn.__class__ = SamplingRPN
        base.roi_heads.__class__ = SamplingRoIHeads
        base.roi_heads.append_objects = append_objects
        base.transform.__class__ = Transform
        GeneralizedRCNN.__init__(self, base.backbone, base.rpn, base.roi_heads, base.transform)
        add_sites(self, sites)
        refer_to_site(self.rpn, sites["rpn"])
        refer_to_site(self.roi_heads, sites["rcnn"])

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
            pair = torch.tensor([self.image_mean, self.image_std], dtype=torch.float64)
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
    roi_align: Literal["fast", "torchvision"] = "fast",
    append_objects: bool = True,
    assigner: Mapping[str, Assigner] = NONE,
    sampler: Mapping[str, Sampler] = NONE,
    loss: Mapping[str, ClassLoss] = NONE,
    box_loss: Mapping[str, BoxLoss] = NONE,
    weigher: Mapping[str, Weigher | None] = NONE,
    loss_weight: Mapping[str, Mapping[str, float]] = NONE,
    **torchvision_options: Any,
) -> Detector:
    """A detector from plain values. Without further arguments it is stock Faster R-CNN.

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
        append_objects: append each image's objects to its proposals, as torchvision does. They
            count as positives with IoU 1: OHEM's pool and PISA's ranks include them.
        assigner, sampler, loss, box_loss, weigher: by site name ("rpn", "rcnn"); a site that is
            not named has torchvision's.
        loss_weight: factors of the terms by site name: ``{"rcnn": {"class": 1.0, "box": 2.0}}``.
        torchvision_options: further arguments of torchvision's ``FasterRCNN``: min_size, max_size,
            rpn_pre_nms_top_n_train, box_score_thresh, ...

    Raises:
        UserError: weights that are not there or do not fit; ConfigError: an unknown name or site,
            anchor sizes that this network has no levels for, a sampler's budget or an assigner's
            threshold, or a loss that cannot serve at its site or holds numbers for other classes.
    """
    if roi_align not in ROI_ALIGN:
        raise ConfigError(f"model.roi_align: {roi_align!r} is not one of {', '.join(ROI_ALIGN)}")
    if name not in NAMES:
        raise ConfigError(f"model.name: {name!r} is not one of {', '.join(NAMES)}")
    refuse_sites_options(torchvision_options)
    if anchor_sizes is not None:
        check_anchor_sizes(name, anchor_sizes)
        torchvision_options["rpn_anchor_generator"] = one_anchor_size_a_level(anchor_sizes)
    parts = {
        "assigner": assigner, "sampler": sampler, "loss": loss, "box_loss": box_loss,
        "weigher": weigher, "loss_weight": loss_weight,
    }  # fmt: skip
    by_site = parts_by_site(SITES, parts)
    biases = {
        "rpn": initial_bias("rpn", by_site["rpn"]["loss"], 2),
        "rcnn": initial_bias("rcnn", by_site["rcnn"]["loss"], num_classes),
    }
    base = build_base(
        name,
        num_classes,
        weights,
        weights_backbone,
        trainable_backbone_layers,
        torchvision_options,
        biases=(biases["rpn"], biases["rcnn"]),
        width=Width(fpn_channels, representation_size, backbone_width),
    )
    if roi_align == "fast":
        base.roi_heads.box_roi_pool.__class__ = FastRoIAlign
    coders = {"rpn": base.rpn.box_coder, "rcnn": base.roi_heads.box_coder}
    sites = {site: make_site(site, SITES[site], coders[site], by_site[site]) for site in SITES}
    return Detector(base, sites, append_objects)


def refuse_sites_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments of torchvision's whose work a site's parts do."""
    useless = sorted(SITES_OPTIONS & options.keys())
    if useless:
        raise ConfigError(f"samplers and assigners decide: {', '.join(useless)} would do nothing")


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
