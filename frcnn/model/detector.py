"""Builds a torchvision Faster R-CNN whose RPN and RCNN head are sites."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict, Unpack

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from frcnn.errors import ConfigError
from frcnn.losses import BoxLoss, ClassLoss
from frcnn.model.backbones import STOCK, Network, Width, build_base, family_of
from frcnn.model.roi_align import FastRoIAlign
from frcnn.model.roi_heads import SamplingRoIHeads
from frcnn.model.rpn import SamplingRPN
from frcnn.model.sites import add_sites, initial_bias, make_site, parts_by_site, refer_to_site
from frcnn.sites.assigners import Assigner
from frcnn.sites.site import Site, Sites
from frcnn.sites.weighers import Weigher
from samplers import Sampler

ROI_ALIGN = ("fast", "torchvision")
SITES = {"rpn": "rpn", "rcnn": "rcnn"}  # name -> kind, in the order in which the network meets them
NONE: Mapping[str, Any] = MappingProxyType({})
# Arguments of torchvision's that samplers and assigners replace.
SITES_OPTIONS = {
    f"{site}_{part}"
    for site in ("rpn", "box")
    for part in ("batch_size_per_image", "positive_fraction", "fg_iou_thresh", "bg_iou_thresh")
}
Positive = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Le(1)]


class TorchvisionOptions(TypedDict, total=False):
    """Arguments of torchvision's ``FasterRCNN`` that ``build_detector`` passes on."""

    min_size: Positive | Annotated[Sequence[Positive], MinLen(1)]
    max_size: Positive
    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    rpn_pre_nms_top_n_train: Positive
    rpn_pre_nms_top_n_test: Positive
    rpn_post_nms_top_n_train: Positive
    rpn_post_nms_top_n_test: Positive
    rpn_nms_thresh: Share
    rpn_score_thresh: Share
    box_score_thresh: Share
    box_nms_thresh: Share
    box_detections_per_img: Positive
    rpn_anchor_generator: Any
    rpn_head: Any
    box_roi_pool: Any
    box_head: Any
    box_predictor: Any
    bbox_reg_weights: Any


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

    sites: Sites

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
    """torchvision's resizing, which also resizes the ignore areas.

    The mean and the deviation are copied to a GPU once, not once per image.
    """

    def normalize(self, image: Tensor) -> Tensor:
        """[3, H, W] minus the mean of each channel, divided by its standard deviation."""
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
        if min(before) < least:  # resizing would leave no pixel of so thin a strip
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
    backbone: str | nn.Module | None = None,
    weights: str | None = None,
    weights_backbone: str | None = None,
    trainable_backbone_layers: Annotated[int, Ge(0), Le(6)] | None = None,
    freeze_batch_norm: bool | None = None,
    fpn_channels: Positive = STOCK.fpn_channels,
    representation_size: Positive = STOCK.representation_size,
    backbone_width: Annotated[float, Gt(0)] = STOCK.backbone_width,
    anchor_sizes: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] | None = None,
    roi_align: Literal["fast", "torchvision"] = "fast",
    append_objects: bool = True,
    assigner: Mapping[str, Assigner] = NONE,
    sampler: Mapping[str, Sampler] = NONE,
    loss: Mapping[str, ClassLoss] = NONE,
    box_loss: Mapping[str, BoxLoss] = NONE,
    weigher: Mapping[str, Weigher | None] = NONE,
    loss_weight: Mapping[str, Mapping[str, float]] = NONE,
    **torchvision_options: Unpack[TorchvisionOptions],
) -> Detector:
    """A detector from plain values. Without further arguments it is stock Faster R-CNN.

    Args:
        num_classes: C + 1, background counted, as in torchvision.
        name: a builder of ``torchvision.models.detection``, or ``fasterrcnn_resnet18_fpn``,
            ``..._resnet34_fpn``, ``..._resnet101_fpn``, ``fasterrcnn_timm``.
        backbone: the name of a timm network for ``fasterrcnn_timm``, also with that of its
            weights ("resnet18.a1_in1k"); or a module, whatever the name, that returns feature maps
            [B, out_channels, H, W] by level name, finest first, and has ``out_channels``. The RCNN
            head pools from all levels but "pool".
        weights: None, the name of torchvision's detector weights ("COCO_V1", "DEFAULT"), or a file.
        weights_backbone: None, or the name of torchvision's ImageNet weights; for a timm
            network None, "pretrained" or a file of an image classifier; ignored with weights.
        trainable_backbone_layers: backbone stages that train, counted from the last, 0 to 5;
            None = three with weights_backbone or torchvision's detector weights, else all.
        freeze_batch_norm: of a timm network; None = frozen with weights_backbone, else trained.
        fpn_channels: of every pyramid level and the RPN's convolution; other than 256 for
            ResNet-18, 34, 101 and timm networks only.
        representation_size: of the box head's two hidden layers; other than 1024 for the same and
            for a module.
        backbone_width: factor of the channels of every layer of the ResNet, above 0; other than 1
            for ResNet-18, 34 and 101, from scratch or a file.
        anchor_sizes: side of the square anchor of each level in pixels; a ResNet-FPN and a timm
            network have five levels; None = torchvision's.
        roi_align: "fast" (on a CPU; torchvision's kernel elsewhere) or "torchvision".
        append_objects: append each image's objects to its proposals, as torchvision does. They
            count as positives with IoU 1: OHEM's pool and PISA's ranks include them.
        assigner, sampler, loss, box_loss, weigher: by site name ("rpn", "rcnn"); a site that is
            not named has torchvision's.
        loss_weight: factors of the terms by site name: ``{"rcnn": {"class": 1.0, "box": 2.0}}``.
        torchvision_options: further arguments of torchvision's ``FasterRCNN``: min_size, max_size,
            rpn_pre_nms_top_n_train, box_score_thresh, ...

    Raises:
        UserError: weights that are missing or do not fit; ConfigError: an unknown name or site,
            anchor sizes that this network has no levels for, a sampler's budget or an assigner's
            threshold, or a loss that cannot serve at its site or holds numbers for other classes.
    """
    if roi_align not in ROI_ALIGN:
        raise ConfigError(f"model.roi_align: {roi_align!r} is not one of {', '.join(ROI_ALIGN)}")
    refuse_sites_options(torchvision_options)
    if anchor_sizes is not None:
        check_anchor_sizes(name, family_of(name, backbone).levels, anchor_sizes)
        torchvision_options["rpn_anchor_generator"] = one_anchor_size_a_level(anchor_sizes)
    network = Network(
        name,
        num_classes,
        backbone,
        weights,
        weights_backbone,
        trainable_backbone_layers,
        freeze_batch_norm,
        Width(fpn_channels, representation_size, backbone_width),
        torchvision_options,
    )
    parts = {
        "assigner": assigner, "sampler": sampler, "loss": loss, "box_loss": box_loss,
        "weigher": weigher, "loss_weight": loss_weight,
    }  # fmt: skip
    by_site = parts_by_site(SITES, parts)
    biases = {
        "rpn": initial_bias("rpn", by_site["rpn"]["loss"], 2),
        "rcnn": initial_bias("rcnn", by_site["rcnn"]["loss"], num_classes),
    }
    base = build_base(network, biases=(biases["rpn"], biases["rcnn"]))
    if roi_align == "fast":
        base.roi_heads.box_roi_pool.__class__ = FastRoIAlign
    coders = {"rpn": base.rpn.box_coder, "rcnn": base.roi_heads.box_coder}
    sites = {site: make_site(site, SITES[site], coders[site], by_site[site]) for site in SITES}
    return Detector(base, sites, append_objects)


def refuse_sites_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments of torchvision's that a site's parts replace."""
    useless = sorted(SITES_OPTIONS & options.keys())
    if useless:
        raise ConfigError(f"samplers and assigners decide: {', '.join(useless)} would do nothing")


def check_anchor_sizes(name: str, levels: int | None, sizes: Sequence[float]) -> None:
    """Raise ConfigError unless there is one anchor size for each of the network's levels."""
    if levels is None:
        raise ConfigError(f"model.anchor_sizes: {name} has anchors of its own, choose null")
    if len(sizes) != levels:
        raise ConfigError(
            f"model.anchor_sizes: expected {levels} sizes, one per level, got {len(sizes)}"
        )


def one_anchor_size_a_level(sizes: Sequence[float]) -> AnchorGenerator:
    """One anchor size at each level and three aspect ratios, as in torchvision's ResNet-FPN."""
    return AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
