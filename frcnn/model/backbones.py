"""The bare torchvision models and their starting weights."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import (
    _validate_trainable_layers,
    resnet_fpn_backbone,
)
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from frcnn.errors import ConfigError, UserError
from frcnn.runfolder.checkpoint import is_state_dict, read

log = logging.getLogger(__name__)

NAMES = (
    "fasterrcnn_resnet18_fpn",
    "fasterrcnn_resnet34_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet101_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
COCO_V1 = models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
PREDICTOR = "roi_heads.box_predictor."
RGB = 3  # channels of an image
ROI_CELLS = 7 * 7  # of a pooled box, in every detector of torchvision's


class Width(NamedTuple):
    """How wide a detector is.

    Args:
        fpn_channels: of every pyramid level.
        representation_size: of the two hidden layers of the box head.
        backbone_width: times torchvision's channels, in every layer of the ResNet.
    """

    fpn_channels: int = 256
    representation_size: int = 1024
    backbone_width: float = 1.0


STOCK = Width()


def build_base(
    name: str,
    num_classes: int,
    weights: str | None,
    weights_backbone: str | None,
    trainable_layers: int | None,
    options: dict[str, Any],
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
    width: Width = STOCK,
) -> FasterRCNN:
    """A torchvision Faster R-CNN with its starting weights.

    As in torchvision, named weights freeze BatchNorm and the first backbone stages; from scratch
    everything trains. A weights file decides by its content: one saved with frozen BatchNorm gets
    it here too.

    Args:
        weights: None, a name of torchvision's detector weights, or a file.
        options: arguments of ``FasterRCNN``.
        biases: what the class logits of RPN ([2], of ``[0, x]``) and box predictor ([C+1]) start
            with where no weights are loaded into them; None = as torchvision has it.
        width: of the pyramid and the box head; another than torchvision's for ResNets that it has
            no detector for.
    """
    if width != STOCK and hasattr(models.detection, name):
        raise ConfigError(
            f"model.fpn_channels, model.representation_size, model.backbone_width: {name} is "
            f"torchvision's own, with {STOCK.fpn_channels}, {STOCK.representation_size} and 1"
        )
    if width.backbone_width != 1 and weights is None and weights_backbone is not None:
        raise ConfigError(f"model.backbone_width: weights {weights_backbone} are for 1")
    rpn_bias, rcnn_bias = biases
    if weights is None:
        model = _torchvision(
            name, num_classes, None, weights_backbone, trainable_layers, options, width
        )
        set_biases(model, rpn_bias, rcnn_bias)
        return model
    if Path(weights).suffix:
        model = _torchvision(name, num_classes, None, None, None, options, width)
        set_biases(model, None, rcnn_bias)  # kept if the file's predictor is for other classes
        load_into(model, file_weights(weights), f"weights {weights}")
        if Path(weights).name == Path(COCO_V1.url).name:
            overwrite_eps(model, 0.0)  # trained so; torchvision does the same for the named weights
        if trainable_layers is not None:
            freeze_stages(model, name, trainable_layers)
        return model
    model = _torchvision(name, None, weights, None, trainable_layers, options)
    if num_classes != model.roi_heads.box_predictor.cls_score.out_features:
        log.info("weights %s: the box predictor starts afresh for %d classes", weights, num_classes)
        features = model.roi_heads.box_predictor.cls_score.in_features
        model.roi_heads.box_predictor = FastRCNNPredictor(features, num_classes)
        set_biases(model, None, rcnn_bias)
    return model


@torch.no_grad()
def set_biases(model: FasterRCNN, rpn: Tensor | None, rcnn: Tensor | None) -> None:
    """Start the class logits of both sites at [2] and [C+1] biases; None leaves them."""
    if rpn is not None:
        model.rpn.head.cls_logits.bias.fill_(rpn[1] - rpn[0])
    if rcnn is not None:
        model.roi_heads.box_predictor.cls_score.bias.copy_(rcnn)


def _torchvision(
    name: str,
    num_classes: int | None,
    weights: str | None,
    weights_backbone: str | None,
    trainable_layers: int | None,
    options: dict[str, Any],
    width: Width = STOCK,
) -> FasterRCNN:
    """torchvision's builder where it has one, else the same from a ResNet of another depth."""
    try:
        if hasattr(models.detection, name):
            builder = getattr(models.detection, name)
            return builder(
                weights=_member(models.get_model_weights(builder), weights, "model.weights"),
                weights_backbone=_member(_backbone_weights(name), weights_backbone),
                num_classes=num_classes,
                trainable_backbone_layers=trainable_layers,
                **options,
            )
        if weights is not None:
            raise ConfigError(f"model.weights: torchvision has no detector weights for {name}")
        # As torchvision's own builders: without weights nothing stays frozen at random values.
        pretrained = weights_backbone is not None
        trainable_layers = _validate_trainable_layers(pretrained, trainable_layers, 5, 3)
        backbone = resnet_fpn_backbone(
            backbone_name=_backbone_name(name),
            weights=_member(_backbone_weights(name), weights_backbone),
            norm_layer=nn.BatchNorm2d if weights_backbone is None else FrozenBatchNorm2d,
            trainable_layers=trainable_layers,
        )
        if width == STOCK:
            return FasterRCNN(backbone, num_classes, **options)
        return _of_width(backbone, num_classes, width, options)
    except ValueError as error:  # stages out of range
        raise ConfigError(f"model: {error}") from error
    except OSError as error:  # no network, a timeout, a reset
        raise UserError(_where_to_put(name, weights, weights_backbone, error)) from error


def _of_width(
    backbone: nn.Module, num_classes: int, width: Width, options: dict[str, Any]
) -> FasterRCNN:
    """A Faster R-CNN with torchvision's parts, other numbers of channels behind the backbone."""
    inputs = [block[0].in_channels for block in backbone.fpn.inner_blocks]
    if width.backbone_width != 1:
        scale_channels(backbone.body, width.backbone_width)
        inputs = [_scaled(channels, width.backbone_width) for channels in inputs]
    backbone.fpn = FeaturePyramidNetwork(
        inputs, width.fpn_channels, extra_blocks=LastLevelMaxPool()
    )
    backbone.out_channels = width.fpn_channels
    return FasterRCNN(
        backbone,
        box_head=TwoMLPHead(width.fpn_channels * ROI_CELLS, width.representation_size),
        box_predictor=FastRCNNPredictor(width.representation_size, num_classes),
        **options,
    )


def scale_channels(module: nn.Module, width: float) -> None:
    """Give every layer of a ResNet ``width`` times its channels, and fresh weights.

    The width multiplier of MobileNet (arXiv 1704.04861, sec. 3.3); weights start as torchvision's
    ResNets do.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            image = child.in_channels == RGB
            scaled = nn.Conv2d(
                RGB if image else _scaled(child.in_channels, width),
                _scaled(child.out_channels, width),
                child.kernel_size,
                child.stride,
                child.padding,
                bias=False,
            )
            nn.init.kaiming_normal_(scaled.weight, mode="fan_out", nonlinearity="relu")
            setattr(module, name, scaled)
        elif isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.BatchNorm2d(_scaled(child.num_features, width)))
        else:
            scale_channels(child, width)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(width * channels))


def _backbone_name(name: str) -> str:
    return re.sub(r"^fasterrcnn_|(_320)?_fpn(_v2)?$", "", name)


def _backbone_weights(name: str) -> type[models.WeightsEnum]:
    return models.get_model_weights(_backbone_name(name))


def _member(
    kind: type[models.WeightsEnum], name: str | None, key: str = "model.weights_backbone"
) -> models.WeightsEnum | None:
    if name is not None and name not in kind.__members__:
        raise ConfigError(f"{key}: {name!r} is not one of null, {', '.join(kind.__members__)}")
    return None if name is None else kind[name]


def _where_to_put(
    name: str, weights: str | None, weights_backbone: str | None, error: OSError
) -> str:
    kind = _backbone_weights(name) if weights is None else models.get_model_weights(name)
    file = Path(kind[weights or weights_backbone].url).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    reason = getattr(error, "reason", error)
    return (
        f"weights {weights or weights_backbone} of {name} cannot be downloaded ({reason}): "
        f"put the file {file} into {folder}, or choose model.weights=FILE or null"
    )


def file_weights(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict of a file: torchvision's, or the model of one of our checkpoints.

    Raises:
        UserError: the file is missing, unreadable, or holds no state dict.
    """
    content = read(Path(path), "weights file")
    state = content.get("model", content) if isinstance(content, dict) else None
    if not is_state_dict(state):
        raise UserError(f"{path}: holds no state dict")
    return state


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a detector's state dict; a box predictor for other classes starts afresh.

    Raises:
        UserError: any other difference in names or shapes.
    """
    if not any(key.endswith("num_batches_tracked") for key in state):
        freeze_batch_norm(model)
    own = model.state_dict()
    state = dict(state)
    if any(own[key].shape != state[key].shape for key in own if PREDICTOR in key and key in state):
        log.warning("%s: made for other classes, the box predictor starts afresh", source)
        state |= {key: value for key, value in own.items() if key.startswith(PREDICTOR)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: does not fit this model ({first})") from error


def freeze_stages(model: FasterRCNN, name: str, trainable: int) -> None:
    """Let only the last ``trainable`` stages of a ResNet train, 0..5, as torchvision counts them.

    Raises:
        ConfigError: another backbone, whose stages torchvision freezes for named weights only.
    """
    if "resnet" not in name:
        raise ConfigError("model.trainable_backbone_layers: with a weights file for ResNets only")
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable]
    train = (*stages, "bn1") if trainable == 5 else tuple(stages)
    for key, parameter in model.backbone.body.named_parameters():
        parameter.requires_grad_(key.startswith(train) if train else False)


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside by torchvision's frozen one, with the same numbers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)
