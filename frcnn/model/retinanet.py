"""RetinaNet (arXiv 1708.02002), whose anchors are the candidates of the site "dense".

Shape letters: I images, N anchors per image (all levels), C object classes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypedDict, Unpack

import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import batched_nms, clip_boxes_to_image

from frcnn.config.schema import PositiveInt, Share
from frcnn.losses import BoxLoss, ClassLoss, GIoU
from frcnn.losses.samples import widened
from frcnn.model.anchors import (
    ASPECT_RATIOS,
    anchor_levels,
    anchors_of,
    check_anchor_sizes,
    scaled_sizes,
)
from frcnn.model.architectures import RetinaNetArchitecture
from frcnn.model.backbones import STOCK, Network, Width, build_base
from frcnn.model.box_coder import BoxCoder
from frcnn.model.detector import Detector, Transform
from frcnn.model.faster_rcnn import NONE
from frcnn.model.modes import compile_methods
from frcnn.model.sites import add_sites, make_site, parts_by_site, prepare_loss
from frcnn.model.sparse_tower import can_be_sparse, sparse_tower
from frcnn.sites.assigners import Assigner
from frcnn.sites.site import Site, stack_candidates
from frcnn.sites.weighers import Weigher
from samplers import Sampler

SITES = {"dense": "dense"}
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of the anchors of a location
SMALLEST_ANCHOR = 4  # side of the anchor of scale 1, in strides of its level


class RetinaNetOptions(TypedDict, total=False):
    """Arguments of torchvision's ``RetinaNet`` that ``build_retinanet`` passes on."""

    min_size: PositiveInt | Annotated[Sequence[PositiveInt], MinLen(1)]
    max_size: PositiveInt
    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    score_thresh: Share
    nms_thresh: Share
    detections_per_img: PositiveInt
    topk_candidates: PositiveInt


class SamplingRetinaNet(Detector, RetinaNet):
    """torchvision's RetinaNet with the same parameters, and a site over all of its anchors.

    See ``Detector`` for what it takes and returns. The detections use the scores of the site's
    class loss. Column 0 of the class logits is background and never detected.
    """

    predictor = RetinaNetArchitecture.predictor
    head: RetinaNetHead
    anchor_generator: AnchorGenerator
    box_coder: BoxCoder
    score_thresh: float
    nms_thresh: float
    topk_candidates: int
    detections_per_img: int

    @classmethod
    def over(cls, base: RetinaNet, sites: Mapping[str, Site]) -> "SamplingRetinaNet":
        """Give torchvision's RetinaNet its site. Its modules stay what they are."""
        base.__class__ = cls
        base.transform.__class__ = Transform
        base.box_coder.__class__ = BoxCoder
        add_sites(base, sites)
        assert isinstance(base, SamplingRetinaNet)
        return base

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> Any:
        """See ``Detector``."""
        if self.training and targets is None:
            raise ValueError("training needs targets")
        original_sizes = [tuple(image.shape[-2:]) for image in images]
        batch, targets = self.transform(images, targets)
        maps = self.backbone(batch.tensors)
        levels = [maps] if isinstance(maps, Tensor) else list(maps.values())
        anchors = anchors_of(self.anchor_generator, batch, levels)
        logits, deltas = self._outputs(levels)
        losses = {}
        if targets is not None:
            losses = self._losses(batch, levels, anchors, logits, deltas, targets)
        if self.training:
            return losses
        sizes = self._anchors_per_level(levels)
        detections = [
            self._strongest(*image, sizes)
            for image in zip(logits, deltas, anchors, batch.image_sizes, strict=True)
        ]
        detections = self.transform.postprocess(detections, batch.image_sizes, original_sizes)
        return (detections, losses) if losses else detections

    def compile_parts(self, **options: Any) -> None:
        """As ``Detector``; the head is both towers at all levels."""
        super().compile_parts(**options)
        compile_methods(self, "_outputs", **options)

    def _outputs(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """[I, N, C+1] logits and [I, N, 4] deltas, float32 at least."""
        classes, boxes = self.head.classification_head, self.head.regression_head
        # The kept anchors touch more locations than the positives do: in bf16 that gains nothing.
        full_precision = not torch.is_autocast_enabled(levels[0].device.type)
        logits = _tower([*classes.conv, classes.cls_logits], levels, full_precision)
        deltas = _tower([*boxes.conv, boxes.bbox_reg], levels, True)
        return (
            widened(_per_anchor(logits, classes.num_classes)),
            widened(_per_anchor(deltas, 4)),
        )

    def _losses(
        self,
        images: ImageList,
        levels: Sequence[Tensor],
        anchors: Sequence[Tensor],
        logits: Tensor,
        deltas: Tensor,
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Named terms of [I, N, C+1] logits and [I, N, 4] deltas."""
        check_boxes(targets)
        level, strides = anchor_levels(images, levels, self._anchors_per_level(levels))
        labels = [target["labels"] for target in targets]
        candidates = stack_candidates(anchors, targets, labels, level=level, strides=strides)
        logits, deltas = logits.flatten(0, 1), deltas.flatten(0, 1)[:, None]
        preview = partial(_at_rows, logits.detach(), deltas.detach())
        return self.sites["dense"](candidates, preview, partial(_at_rows, logits, deltas), targets)

    def _anchors_per_level(self, levels: Sequence[Tensor]) -> list[int]:
        per_location = self.anchor_generator.num_anchors_per_location()
        return [
            features.shape[-2:].numel() * anchors
            for features, anchors in zip(levels, per_location, strict=True)
        ]

    def _strongest(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        size: tuple[int, int],
        level_sizes: Sequence[int],
    ) -> dict[str, Tensor]:
        """Detections of one image: the best of each level, then NMS within each class."""
        scores = self.sites["dense"].class_loss.scores(logits)[:, 1:]
        rows, columns = zip(*self._best_of_levels(scores.split(list(level_sizes))), strict=True)
        row, column = torch.cat(rows), torch.cat(columns)
        boxes = self.box_coder.decode_single(deltas[row], anchors[row])
        boxes = clip_boxes_to_image(boxes, size)
        scores, labels = scores[row, column], column + 1
        keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}

    def _best_of_levels(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """[N_l, C] scores of each level -> rows among all levels and columns, best first."""
        found, first = [], 0
        for scores in levels:
            pairs = torch.where(scores.flatten() > self.score_thresh)[0]
            best = scores.flatten()[pairs].topk(min(len(pairs), self.topk_candidates)).indices
            row = torch.div(pairs[best], scores.shape[1], rounding_mode="floor")
            found.append((first + row, pairs[best] % scores.shape[1]))
            first += len(scores)
        return found


def build_retinanet(
    num_classes: int,
    name: str = "retinanet_resnet50_fpn",
    *,
    backbone: str | nn.Module | None = None,
    weights: str | None = None,
    weights_backbone: str | None = None,
    trainable_backbone_layers: Annotated[int, Ge(0), Le(6)] | None = None,
    freeze_batch_norm: bool | None = None,
    fpn_channels: PositiveInt = STOCK.fpn_channels,
    backbone_width: Annotated[float, Gt(0)] = STOCK.backbone_width,
    first_level: Annotated[int, Ge(2), Le(5)] = 3,
    last_level: Annotated[int, Ge(5), Le(7)] = 7,
    anchor_sizes: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] | None = None,
    anchor_scales: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] = SCALES,
    whole_anchor_sizes: bool = True,
    aspect_ratios: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] = ASPECT_RATIOS,
    head_depth: PositiveInt = 4,
    head_width: PositiveInt | None = None,
    assigner: Mapping[str, Assigner] = NONE,
    sampler: Mapping[str, Sampler] = NONE,
    loss: Mapping[str, ClassLoss] = NONE,
    box_loss: Mapping[str, BoxLoss] = NONE,
    weigher: Mapping[str, Weigher | None] = NONE,
    loss_weight: Mapping[str, Mapping[str, float]] = NONE,
    **torchvision_options: Unpack[RetinaNetOptions],
) -> SamplingRetinaNet:
    """A RetinaNet from plain values. Without further arguments it is torchvision's.

    Args:
        num_classes: C + 1, background counted, as in torchvision.
        name: ``retinanet_resnet50_fpn``, ``..._v2``, ``retinanet_resnet18_fpn``, ``..._34``,
            ``..._101``, ``retinanet_timm``.
        backbone, weights, weights_backbone, trainable_backbone_layers, freeze_batch_norm,
            fpn_channels, backbone_width: as for ``build_faster_rcnn``.
        first_level, last_level: l of the pyramid's levels of stride 2^l.
        anchor_sizes: side of the square anchor of each level in pixels; None = 4 strides.
        anchor_scales: factors of the size; every scale is an anchor of its own.
        whole_anchor_sizes: cut the sizes to whole pixels, as torchvision does.
        aspect_ratios: height over width of the anchors.
        head_depth, head_width: layers of each tower and their channels; None = ``fpn_channels``.
        assigner, sampler, loss, box_loss, weigher: by site name ("dense"); a site that is not named
            has torchvision's.
        loss_weight: factors of the terms by site name: ``{"dense": {"class": 1.0, "box": 2.0}}``.
        torchvision_options: further arguments of torchvision's ``RetinaNet``: min_size, max_size,
            score_thresh, topk_candidates, nms_thresh, detections_per_img.

    Raises:
        UserError: weights that are not there or do not fit; ConfigError: an unknown name or site,
            anchor sizes that do not suit the levels, or a loss that cannot serve at its site.
    """
    levels = range(first_level, last_level + 1)
    if anchor_sizes is None:
        anchor_sizes = [SMALLEST_ANCHOR * 2**level for level in levels]
    check_anchor_sizes(name, len(levels), anchor_sizes)
    architecture = RetinaNetArchitecture(
        scaled_sizes(anchor_sizes, anchor_scales, whole_anchor_sizes),
        aspect_ratios,
        first_level,
        last_level,
        head_depth,
        head_width,
    )
    network = Network(
        architecture,
        name,
        num_classes,
        backbone,
        weights,
        weights_backbone,
        trainable_backbone_layers,
        freeze_batch_norm,
        Width(fpn_channels, backbone_width),
        torchvision_options,
    )
    parts = {
        "assigner": assigner, "sampler": sampler, "loss": loss, "box_loss": box_loss,
        "weigher": weigher, "loss_weight": loss_weight,
    }  # fmt: skip
    if name == "retinanet_resnet50_fpn_v2":
        parts["box_loss"] = {"dense": GIoU(1.0, per="image")} | dict(box_loss)
    own = parts_by_site(SITES, parts)["dense"]
    base = build_base(network, {"dense": prepare_loss("dense", own["loss"], num_classes)})
    return SamplingRetinaNet.over(base, {"dense": make_site("dense", "dense", base.box_coder, own)})


def check_boxes(targets: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise ValueError for an object without height or width."""
    for number, target in enumerate(targets):
        flat = (target["boxes"][:, 2:] <= target["boxes"][:, :2]).any(1)
        if flat.any():
            box = target["boxes"][flat][0].tolist()
            raise ValueError(f"image {number} of the batch: box {box} has no height or no width")


def _tower(layers: Sequence[nn.Module], levels: Sequence[Tensor], sparse: bool) -> Sequence[Tensor]:
    """The [I, C, H, W] levels after all layers of a tower of the head.

    Args:
        sparse: let the backward pass leave out locations without a gradient, where it can.
    """
    if sparse and torch.is_grad_enabled() and can_be_sparse(layers, levels[0].device):
        return sparse_tower(layers, levels)
    for layer in layers:
        levels = [layer(level) for level in levels]
    return levels


def _per_anchor(levels: Sequence[Tensor], columns: int) -> Tensor:
    """[I, A * columns, H, W] of each level, A anchors per location -> [I, N, columns]."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, columns) for x in levels], 1)


def _at_rows(logits: Tensor, deltas: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """[K, C+1] logits and [K, 1, 4] deltas of some anchors; ``rows`` ascend and are unique."""
    if len(rows) == len(logits):  # all of them: no copy
        return logits, deltas
    return logits[rows], deltas[rows]
