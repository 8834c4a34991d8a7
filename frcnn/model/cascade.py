"""Cascade R-CNN (Cai and Vasconcelos, CVPR 2018, arXiv 1712.00726): three heads, each a site."""

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Unpack, cast

import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from frcnn.config.schema import PositiveInt
from frcnn.losses import BoxLoss, ClassLoss
from frcnn.model.box_coder import BoxCoder
from frcnn.model.detector import Detector
from frcnn.model.faster_rcnn import NONE, TorchvisionOptions, build_faster_rcnn
from frcnn.model.roi_heads import Features, SamplingRoIHeads, Sizes
from frcnn.model.sites import add_sites, make_site, parts_by_site, prepare_loss, refer_to_site
from frcnn.sites.assigners import Assigner, MaxIoU
from frcnn.sites.weighers import Weigher
from samplers import Sampler

STAGES = ("rcnn1", "rcnn2", "rcnn3")
SITES = {"rpn": "rpn"} | dict.fromkeys(STAGES, "rcnn")
# Of the deltas; later stages move boxes less, so their deltas are multiplied by more (sec. 4.1).
CODER_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
IOUS = {"rcnn1": 0.5, "rcnn2": 0.6, "rcnn3": 0.7}
STAGE_WEIGHTS = {
    site: {"class": weight, "box": weight}
    for site, weight in zip(STAGES, (1.0, 0.5, 0.25), strict=True)
}
PREFIX, OWN_PREFIX = "fasterrcnn", "cascade_rcnn"


class NetworkOptions(TorchvisionOptions, total=False):
    """Arguments of ``build_faster_rcnn`` that a cascade has too."""

    backbone: str | nn.Module | None
    weights: str | None
    weights_backbone: str | None
    trainable_backbone_layers: Annotated[int, Ge(0), Le(6)] | None
    freeze_batch_norm: bool | None
    fpn_channels: PositiveInt
    representation_size: PositiveInt
    backbone_width: Annotated[float, Gt(0)]
    anchor_sizes: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] | None
    roi_align: Literal["fast", "torchvision"]
    append_objects: bool


class AgnosticPredictor(nn.Module):
    """[K, F] features -> [K, C+1] logits and [K, 4] deltas of one box for all classes."""

    def __init__(self, features: int, columns: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, columns)
        self.bbox_pred = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and deltas."""
        return self.cls_score(x), self.bbox_pred(x)


class CascadeHeads(nn.Module):
    """Heads one after another; each one's boxes are the proposals of the next.

    In training these are the boxes that a stage has sampled, without the appended objects, as in
    the paper's later versions and in released code. Otherwise they are all boxes, the detections
    are the last stage's boxes, and their scores are the mean of the scores of all stages.
    """

    def __init__(self, heads: Sequence[SamplingRoIHeads]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of every image (eval mode only) and losses (if there are targets)."""
        losses: dict[str, Tensor] = {}
        scores = []
        for head in cast(Sequence[SamplingRoIHeads], self.heads):
            if self.training:
                assert targets is not None, "training needs targets"
                terms, sampled = head.learn(features, proposals, image_shapes, targets)
                losses |= terms
                proposals = refined(head, *sampled.proposals(), image_shapes)
                continue
            logits, deltas, terms = head.evaluate(features, proposals, image_shapes, targets)
            losses |= terms
            scores.append(head.site.class_loss.scores(logits)[:, 1:])
            before, proposals = proposals, refined(head, proposals, deltas, image_shapes)
        if self.training:
            return [], losses
        return head.detections(torch.stack(scores).mean(0), deltas, before, image_shapes), losses


@torch.no_grad()
def refined(
    head: SamplingRoIHeads, boxes: list[Tensor], deltas: Tensor, image_shapes: Sizes
) -> list[Tensor]:
    """[K_i, 4] boxes of every image, moved by their [K, 1, 4] deltas and cut to the image."""
    moved = head.box_coder.decode_single(deltas[:, 0], torch.cat(boxes))
    parts = moved.split([len(part) for part in boxes])
    return [clip_boxes_to_image(part, size) for part, size in zip(parts, image_shapes, strict=True)]


def build_cascade_rcnn(
    num_classes: int,
    name: str = "cascade_rcnn_resnet50_fpn",
    *,
    assigner: Mapping[str, Assigner] = NONE,
    sampler: Mapping[str, Sampler] = NONE,
    loss: Mapping[str, ClassLoss] = NONE,
    box_loss: Mapping[str, BoxLoss] = NONE,
    weigher: Mapping[str, Weigher | None] = NONE,
    loss_weight: Mapping[str, Mapping[str, float]] = NONE,
    **network_options: Unpack[NetworkOptions],
) -> Detector:
    """A Cascade R-CNN of three heads over a Faster R-CNN's backbone and RPN.

    The sites are "rpn", "rcnn1", "rcnn2" and "rcnn3". Without further arguments the IoU thresholds
    of the heads are 0.5, 0.6 and 0.7 and their loss weights 1, 0.5 and 0.25. All classes share a
    box. Every head starts as a copy of the Faster R-CNN's, trained weights included, with a new
    predictor.

    The scores of the stages are averaged, each read by its own site's function of the logits;
    detectron2 averages probabilities too.

    Args:
        num_classes: C + 1, background counted.
        name: ``cascade_rcnn_`` and what follows ``fasterrcnn_`` in a name of ``build_faster_rcnn``.
        assigner, sampler, loss, box_loss, weigher, loss_weight: by site name.
        network_options: further arguments of ``build_faster_rcnn``.

    Raises:
        UserError, ConfigError: as ``build_faster_rcnn``.
    """
    weights = STAGE_WEIGHTS | dict(loss_weight)
    parts: dict[str, Mapping[str, Any]] = {
        "assigner": {site: MaxIoU(iou, iou) for site, iou in IOUS.items()} | dict(assigner),
        "sampler": sampler, "loss": loss, "box_loss": box_loss, "weigher": weigher,
        "loss_weight": weights,
    }  # fmt: skip
    own = parts_by_site(SITES, parts)
    of_rpn = {group: {"rpn": part} for group, part in own["rpn"].items()}
    name = name.replace(OWN_PREFIX, PREFIX, 1)
    model = build_faster_rcnn(num_classes, name, **of_rpn, **network_options)
    heads = [stage_head(model.roi_heads, num_classes, weights) for weights in CODER_WEIGHTS]
    sites = {"rpn": model.sites["rpn"]}
    for stage, head in zip(STAGES, heads, strict=True):
        sites[stage] = make_site(stage, "rcnn", head.box_coder, own[stage])
        refer_to_site(head, sites[stage])
        bias = prepare_loss(stage, own[stage]["loss"], num_classes)
        if bias is not None:
            head.box_predictor.cls_score.bias.data.copy_(bias)
    model.roi_heads = CascadeHeads(heads)
    model.predictor = tuple(f"roi_heads.heads.{k}.box_predictor." for k in range(len(heads)))
    add_sites(model, sites)
    return model


def stage_head(
    like: SamplingRoIHeads, columns: int, coder_weights: tuple[float, ...]
) -> SamplingRoIHeads:
    """A copy of a head with a new predictor, one box for all classes."""
    head = copy.deepcopy(like)
    head.box_roi_pool = like.box_roi_pool
    head.box_coder = BoxCoder(coder_weights)
    features = like.box_predictor.cls_score.in_features
    head.box_predictor = AgnosticPredictor(features, columns)
    return head
