"""Faster R-CNN (arXiv 1506.01497), whose RPN and RCNN head are sites."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict, Unpack

from annotated_types import Ge, Gt, Le, MinLen
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from frcnn.config.schema import PositiveInt, Share
from frcnn.errors import ConfigError
from frcnn.losses import BoxLoss, ClassLoss
from frcnn.model.anchors import check_anchor_sizes, one_anchor_size_per_level
from frcnn.model.architectures import FasterRCNNArchitecture
from frcnn.model.backbones import STOCK, Network, Width, build_base, num_levels
from frcnn.model.box_coder import BoxCoder
from frcnn.model.box_head import FastTwoMLPHead
from frcnn.model.detector import Detector, Transform
from frcnn.model.roi_align import FastRoIAlign
from frcnn.model.roi_heads import SamplingRoIHeads
from frcnn.model.rpn import SamplingRPN
from frcnn.model.sites import add_sites, make_site, parts_by_site, prepare_loss, refer_to_site
from frcnn.sites.assigners import Assigner
from frcnn.sites.site import Site
from frcnn.sites.weighers import Weigher
from samplers import Sampler

STOCK_REPRESENTATION = 1024  # channels of the box head's hidden layers
ROI_ALIGN = ("fast", "torchvision")
SITES = {"rpn": "rpn", "rcnn": "rcnn"}  # name -> kind, in the order in which the network meets them
NONE: Mapping[str, Any] = MappingProxyType({})
# Arguments of torchvision's whose work samplers and assigners do.
SITES_OPTIONS = {
    f"{site}_{part}"
    for site in ("rpn", "box")
    for part in ("batch_size_per_image", "positive_fraction", "fg_iou_thresh", "bg_iou_thresh")
}


class TorchvisionOptions(TypedDict, total=False):
    """Arguments of torchvision's ``FasterRCNN`` that ``build_detector`` passes on."""

    min_size: PositiveInt | Annotated[Sequence[PositiveInt], MinLen(1)]
    max_size: PositiveInt
    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    rpn_pre_nms_top_n_train: PositiveInt
    rpn_pre_nms_top_n_test: PositiveInt
    rpn_post_nms_top_n_train: PositiveInt
    rpn_post_nms_top_n_test: PositiveInt
    rpn_nms_thresh: Share
    rpn_score_thresh: Share
    box_score_thresh: Share
    box_nms_thresh: Share
    box_detections_per_img: PositiveInt
    rpn_anchor_generator: Any
    rpn_head: Any
    box_roi_pool: Any
    box_head: Any
    box_predictor: Any
    bbox_reg_weights: Any


class SamplingFasterRCNN(Detector, FasterRCNN):
    """torchvision's Faster R-CNN with the same parameters, and a ``Site`` at RPN and RCNN head."""

    predictor: str | tuple[str, ...] = FasterRCNNArchitecture.predictor
    rpn: SamplingRPN
    roi_heads: Any  # SamplingRoIHeads, or several of them

    def __init__(self, base: Any, sites: Mapping[str, Site], append_objects: bool) -> None:
        # The modules stay torchvision's, with its options: only their class changes.
        base.rpn.__class__ = SamplingRPN
        base.roi_heads.__class__ = SamplingRoIHeads
        base.roi_heads.append_objects = append_objects
        base.transform.__class__ = Transform
        GeneralizedRCNN.__init__(self, base.backbone, base.rpn, base.roi_heads, base.transform)
        self.initial_weights = base.initial_weights
        add_sites(self, sites)
        refer_to_site(self.rpn, sites["rpn"])
        refer_to_site(self.roi_heads, sites["rcnn"])


def build_faster_rcnn(
    num_classes: int,
    name: str = "fasterrcnn_resnet50_fpn",
    *,
    backbone: str | nn.Module | None = None,
    weights: str | None = None,
    weights_backbone: str | None = None,
    trainable_backbone_layers: Annotated[int, Ge(0), Le(6)] | None = None,
    freeze_batch_norm: bool | None = None,
    fpn_channels: PositiveInt = STOCK.fpn_channels,
    representation_size: PositiveInt = STOCK_REPRESENTATION,
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
) -> SamplingFasterRCNN:
    """A Faster R-CNN from plain values. Without further arguments it is torchvision's.

    Args:
        num_classes: C + 1, background counted, as in torchvision.
        name: a builder of ``torchvision.models.detection``, or ``fasterrcnn_resnet18_fpn``,
            ``..._resnet34_fpn``, ``..._resnet101_fpn``, ``fasterrcnn_timm``.
        backbone: the name of a timm network for ``fasterrcnn_timm``, also with that of its
            weights ("resnet18.a1_in1k"); or a module, whatever the name, that returns feature maps
            [B, out_channels, H, W] by level name, finest first, and has ``out_channels``. The RCNN
            head pools from all levels but "pool".
        weights: None, the name of torchvision's detector weights ("COCO_V1", "DEFAULT"), a file,
            or "auto": torchvision's COCO weights if there are any for this network and they can be
            had, else None; None with weights_backbone.
        weights_backbone: None, the name of torchvision's ImageNet weights ("pretrained" for a timm
            network), or a file of an image classifier (not for MobileNet); ignored with weights.
        trainable_backbone_layers: backbone stages that train, counted from the last, 0 to 5;
            MobileNet to 6; None = three with weights_backbone or torchvision's detector weights,
            else all.
        freeze_batch_norm: of a timm network; None = frozen with weights_backbone, else trained.
        fpn_channels: of every pyramid level and the RPN's convolution. ResNet-18, 34, 101 and timm
            networks can have any number, the others have 256.
        representation_size: of the box head's two hidden layers. ResNet-18, 34, 101, timm networks
            and a module can have any number, the others have 1024.
        backbone_width: factor of the ResNet's channels, above 0. ResNet-18, 34 and 101 can have
            any factor, from scratch or from a file; the others have 1.
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
        UserError: weights that are not there or do not fit; ConfigError: an unknown name or site,
            anchor sizes that this network has no levels for, a sampler's budget or an assigner's
            threshold, or a loss that cannot serve at its site or holds numbers for other classes.
    """
    if roi_align not in ROI_ALIGN:
        raise ConfigError(f"model.roi_align: {roi_align!r} is not one of {', '.join(ROI_ALIGN)}")
    refuse_sites_options(torchvision_options)
    width = Width(fpn_channels, backbone_width)
    stock = width == STOCK and representation_size == STOCK_REPRESENTATION
    architecture = FasterRCNNArchitecture(None if stock else representation_size)
    if anchor_sizes is not None:
        check_anchor_sizes(name, num_levels(architecture, name, backbone), anchor_sizes)
        torchvision_options["rpn_anchor_generator"] = one_anchor_size_per_level(anchor_sizes)
    network = Network(
        architecture,
        name,
        num_classes,
        backbone,
        weights,
        weights_backbone,
        trainable_backbone_layers,
        freeze_batch_norm,
        width,
        torchvision_options,
    )
    parts = {
        "assigner": assigner, "sampler": sampler, "loss": loss, "box_loss": box_loss,
        "weigher": weigher, "loss_weight": loss_weight,
    }  # fmt: skip
    by_site = parts_by_site(SITES, parts)
    biases = {
        "rpn": prepare_loss("rpn", by_site["rpn"]["loss"], 2),
        "rcnn": prepare_loss("rcnn", by_site["rcnn"]["loss"], num_classes),
    }
    base = build_base(network, biases)
    if roi_align == "fast":
        base.roi_heads.box_roi_pool.__class__ = FastRoIAlign
        if type(base.roi_heads.box_head) is TwoMLPHead:  # a subclass may do something else
            base.roi_heads.box_head.__class__ = FastTwoMLPHead
    coders = {"rpn": base.rpn.box_coder, "rcnn": base.roi_heads.box_coder}
    for coder in coders.values():
        coder.__class__ = BoxCoder
    sites = {site: make_site(site, SITES[site], coders[site], by_site[site]) for site in SITES}
    return SamplingFasterRCNN(base, sites, append_objects)


def refuse_sites_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments of torchvision's whose work a site's parts do."""
    useless = sorted(SITES_OPTIONS & options.keys())
    if useless:
        raise ConfigError(f"samplers and assigners decide: {', '.join(useless)} would do nothing")
