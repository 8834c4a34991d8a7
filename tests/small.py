"""Small candidates, batches and detectors for the tests of the core."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead

from frcnn.losses import Samples
from frcnn.losses.activation import softmax_scores
from frcnn.model import Detector, build_detector
from frcnn.model.anchors import one_anchor_size_per_level
from frcnn.sites.assigners import Assigned
from samplers import Candidates, Prediction

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
ANCHORS = (8, 16, 32, 64, 128)
OPTIONS = {
    "min_size": 64,
    "max_size": 128,
    "rpn_pre_nms_top_n_train": 60,
    "rpn_post_nms_top_n_train": 40,
    "rpn_pre_nms_top_n_test": 40,
    "rpn_post_nms_top_n_test": 20,
}


def worked(
    labels: Sequence[int],
    loss: Sequence[float],
    class_loss: Sequence[float] | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    image: Sequence[int] | None = None,
) -> Candidates:
    """Candidates from numbers written by hand; without boxes they lie far apart."""
    apart = [[100.0 * i, 0.0, 100.0 * i + 10, 10.0] for i in range(len(labels))]
    place = torch.tensor(apart if boxes is None else boxes).float().reshape(-1, 4)
    losses = torch.tensor(loss).float()
    alone = losses if class_loss is None else torch.tensor(class_loss).float()

    def predict(rows: Tensor) -> Prediction:
        return Prediction(torch.zeros(len(rows), 2), place[rows], losses[rows], alone[rows])

    return Candidates(
        boxes=place,
        labels=torch.tensor(labels, dtype=torch.int64),
        ious=torch.zeros(len(labels)),
        gt=torch.full((len(labels),), -1),
        gt_boxes=torch.zeros(0, 4),
        image=torch.tensor([0] * len(labels) if image is None else image, dtype=torch.int64),
        predict=predict,
    )


def samples(
    logits: Tensor,
    labels: Sequence[int],
    deltas: Tensor | None = None,
    scores: Callable[[Tensor], Tensor] = softmax_scores,
    training: bool = False,
) -> Samples:
    """Kept samples of weight 1; positives' boxes are [0, 0, 10, 10] and so are their objects."""
    label = torch.tensor(labels, dtype=torch.int64)
    positive = torch.where(label > 0)[0]
    deltas = torch.zeros(len(positive), 4) if deltas is None else deltas
    ones = torch.ones(len(labels), dtype=logits.dtype)
    boxes = torch.tensor([[0.0, 0, 10, 10]], dtype=deltas.dtype).repeat(len(positive), 1)
    return Samples(
        logits,
        label,
        ones,
        positive,
        deltas,
        torch.zeros_like(deltas),
        boxes,
        lambda given: CODER.decode_single(given, boxes),
        scores,
        training=training,
    )


def part(labels: Sequence[int], classes: int, seed: int) -> dict[str, Tensor]:
    """One image's candidates with made-up predictions, a function of the arguments alone."""
    g = torch.Generator().manual_seed(seed)
    label, n = torch.tensor(labels, dtype=torch.int64), len(labels)
    objects = any(value > 0 for value in labels) * 3
    corner = torch.rand(n, 2, generator=g) * 40
    boxes = torch.cat([corner, corner + 10 + torch.rand(n, 2, generator=g) * 30], 1)
    logits = torch.randn(n, classes + 1, generator=g) * 2
    class_loss = F.cross_entropy(logits, label.clamp(min=0), reduction="none")
    box_loss = torch.rand(n, generator=g) * (label > 0)
    iou = torch.rand(n, generator=g) * 0.5 + 0.5 * (label > 0)
    return {
        "boxes": boxes,
        "labels": label,
        "ious": iou if objects else torch.zeros(n),
        "gt": torch.randint(3, (n,), generator=g) if objects else torch.full((n,), -1),
        "gt_boxes": torch.tensor([[5.0, 5, 30, 30], [20, 20, 60, 60], [0, 0, 9, 9]])[:objects],
        "logits": logits,
        "loss": class_loss + box_loss,
        "class_loss": class_loss,
        "decoded": boxes + 1,
    }


def stacked(
    parts: Sequence[dict[str, Tensor]],
    seeds: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    make: Callable[..., Prediction] = Prediction,
) -> Candidates:
    """The candidates of a batch; IoUs and predictions in ``dtype``."""
    join = {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
    first, gt = 0, []
    for p in parts:
        gt.append(torch.where(p["gt"] >= 0, p["gt"] + first, -1))
        first += len(p["gt_boxes"])

    def predict(rows: Tensor) -> Prediction:
        logits, loss, alone = (join[k][rows].to(dtype) for k in ("logits", "loss", "class_loss"))
        return make(logits, join["decoded"][rows], loss, alone)

    sizes = torch.tensor([len(p["labels"]) for p in parts])
    return Candidates(
        boxes=join["boxes"],
        labels=join["labels"],
        ious=join["ious"].to(dtype),
        gt=torch.cat(gt),
        gt_boxes=join["gt_boxes"],
        image=torch.arange(len(parts)).repeat_interleave(sizes),
        predict=predict,
        generators=None if seeds is None else [torch.Generator().manual_seed(s) for s in seeds],
    )


def assigned(candidates: Candidates) -> Assigned:
    """The same as an assigner returns them."""
    shared = {field.name for field in fields(Assigned)} & vars(candidates).keys()
    return Assigned(**{name: getattr(candidates, name) for name in shared})


def detector(
    num_classes: int = 4, name: str = "fasterrcnn_resnet18_fpn", **options: Any
) -> Detector:
    """A ResNet-18 detector of small images, the same weights at every call."""
    torch.manual_seed(0)
    return build_detector(num_classes, name, anchor_sizes=ANCHORS, **(OPTIONS | options)).train()


class Pyramid(nn.Module):
    """Feature maps at strides 4 to 64 of 16 channels."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        finest = self.patches(images).relu()
        maps = [F.avg_pool2d(finest, 2**level, ceil_mode=True) for level in range(5)]
        return dict(zip(("0", "1", "2", "3", "pool"), maps, strict=True))


def quick(**options: Any) -> Detector:
    """The same detector around a network of a few thousand weights."""
    with torch.device("meta"):
        model = detector(**options)
    torch.manual_seed(0)
    model.backbone = Pyramid()
    model.rpn.head = RPNHead(16, 3)
    model.rpn.anchor_generator = one_anchor_size_per_level(ANCHORS)
    model.roi_heads.box_head = TwoMLPHead(16 * 49, 32)
    model.roi_heads.box_predictor = FastRCNNPredictor(32, 4)
    return model.train()


def stock(num_classes: int = 4, **options: Any) -> FasterRCNN:
    """torchvision's own detector of the same shape."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    anchors = one_anchor_size_per_level(ANCHORS)
    options = OPTIONS | options
    return FasterRCNN(backbone, num_classes, rpn_anchor_generator=anchors, **options).train()


def quick_stock(**options: Any) -> FasterRCNN:
    """torchvision's own detector of the shape of ``quick``."""
    return FasterRCNN(
        Pyramid(),
        rpn_anchor_generator=one_anchor_size_per_level(ANCHORS),
        box_head=TwoMLPHead(16 * 49, 32),
        box_predictor=FastRCNNPredictor(32, 4),
        **(OPTIONS | options),
    ).train()


def batch(
    *objects: int, seed: int = 0, sizes: Sequence[tuple[int, int]] = ((64, 96), (72, 64), (64, 64))
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Images [3, H, W] of noise and targets with so many objects each, of classes 1..3."""
    g = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, *size, generator=g) for _, size in zip(objects, sizes, strict=False)]
    targets = []
    for count in objects:
        corner = torch.rand(count, 2, generator=g) * 30
        side = 8 + torch.rand(count, 2, generator=g) * 22
        labels = torch.randint(1, 4, (count,), generator=g)
        targets.append({"boxes": torch.cat([corner, corner + side], 1), "labels": labels})
    return images, targets


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients by name, those that are None left out."""
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
