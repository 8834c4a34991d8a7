"""Faster R-CNNs of torchvision's parts over any backbone, with their starting weights.

A ``Family`` describes one kind of backbone. To add one, write its ``build`` function and name it in
``FAMILIES``.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import (
    BackboneWithFPN,
    _validate_trainable_layers,
    resnet_fpn_backbone,
)
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from frcnn.errors import ConfigError, UserError
from frcnn.model.timm_pyramid import TimmPyramid, normalization, timm_pyramid
from frcnn.model.weights import file_weights, load_into

log = logging.getLogger(__name__)

TIMM = "fasterrcnn_timm"
COCO_V1 = models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
RGB = 3  # channels of an image
ROI_SIZE = 7  # cells of a pooled box along each side, in every detector of torchvision's
LEVELS = 5  # of a pyramid of strides 4 to 64
STAGES = 5  # of a backbone: the stem, and one stage for each stride from 4 to 32
PROBE = 128  # side in pixels of the image that finds the levels of a user's backbone
RESNET_STAGES = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}


class Width(NamedTuple):
    """How wide a detector is.

    Args:
        fpn_channels: of every pyramid level.
        representation_size: of the two hidden layers of the box head.
        backbone_width: factor of torchvision's channels, in every layer of the ResNet.
    """

    fpn_channels: int = 256
    representation_size: int = 1024
    backbone_width: float = 1.0


STOCK = Width()


@dataclass(frozen=True)
class Network:
    """What a detector is built from; the fields are arguments of ``build_detector``.

    Args:
        num_classes: C + 1; None = that of torchvision's detector weights.
        options: arguments of torchvision's ``FasterRCNN``.
    """

    name: str
    num_classes: int | None
    backbone: str | nn.Module | None = None
    weights: str | None = None
    weights_backbone: str | None = None
    trainable_backbone_layers: int | None = None
    freeze_batch_norm: bool | None = None
    width: Width = STOCK
    options: Mapping[str, Any] = field(default_factory=dict)


class Family(NamedTuple):
    """One kind of backbone.

    Args:
        build: makes a detector with the weights that ``Network.weights_backbone`` or, where
            torchvision has them, ``Network.weights`` names.
        stages: gives the stage of each parameter of ``model.backbone.body``, from 0 (the stem) to
            4; None = no stages that can be frozen after a file was loaded.
        levels: of its pyramid, each with one anchor size; None = its anchors are fixed.
    """

    build: Callable[[Network], FasterRCNN]
    stages: Callable[[FasterRCNN], Mapping[str, int]] | None
    levels: int | None


def family_of(name: str, backbone: str | nn.Module | None = None) -> Family:
    """The family that builds a detector of this name, or over this module.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(backbone, nn.Module):
        names = level_names(backbone)
        return Family(partial(_over_module, levels=names), None, len(names))
    if name not in FAMILIES:
        raise ConfigError(f"model.name: {name!r} is not one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def build_base(
    network: Network, biases: tuple[Tensor | None, Tensor | None] = (None, None)
) -> FasterRCNN:
    """A Faster R-CNN of torchvision's parts with its starting weights.

    As in torchvision, weights of the backbone freeze BatchNorm and the first stages; from scratch
    everything trains. With a file of a whole detector everything trains but the BatchNorm that was
    frozen when the file was saved.

    Args:
        biases: initial biases of the class logits of the RPN ([2], of ``[0, x]``) and of the box
            predictor ([C+1]), unless weights are loaded into them; None = torchvision's.

    Raises:
        ConfigError: an unknown choice, or choices that cannot be combined.
        UserError: weights that are missing or do not fit.
    """
    rpn_bias, rcnn_bias = biases
    if network.weights is None:
        model = _built(network)
        set_biases(model, rpn_bias, rcnn_bias)
        return model
    if Path(network.weights).suffix:
        return _from_file(network, rcnn_bias)
    return _from_named_weights(network, rcnn_bias)


def _built(network: Network) -> FasterRCNN:
    try:
        return family_of(network.name, network.backbone).build(network)
    except ValueError as error:  # stages out of range
        raise ConfigError(f"model: {error}") from error
    except OSError as error:  # no network, a timeout, a reset
        raise UserError(_where_to_put(network, error)) from error


def _from_file(network: Network, rcnn_bias: Tensor | None) -> FasterRCNN:
    """A detector with the weights of a file, which holds a whole detector."""
    path = str(network.weights)
    model = _built(
        replace(
            network,
            weights=None,
            weights_backbone=None,
            trainable_backbone_layers=None,
            freeze_batch_norm=None,
        )
    )
    set_biases(model, None, rcnn_bias)  # kept if the file's predictor is for other classes
    load_into(model, file_weights(path), f"weights {path}")
    if Path(path).name == Path(COCO_V1.url).name:
        overwrite_eps(model, 0.0)  # as in training; torchvision does the same for its named weights
    if network.trainable_backbone_layers is not None:
        family = family_of(network.name, network.backbone)
        freeze_stages(model, family, network.trainable_backbone_layers)
    if network.freeze_batch_norm is not None:
        _set_batch_norm(model.backbone, network.freeze_batch_norm)
    return model


def _from_named_weights(network: Network, rcnn_bias: Tensor | None) -> FasterRCNN:
    """A detector with torchvision's detector weights; the predictor is for our classes."""
    model = _built(replace(network, num_classes=None, weights_backbone=None))
    predictor = model.roi_heads.box_predictor
    if network.num_classes != predictor.cls_score.out_features:
        log.info(
            "weights %s: the box predictor starts afresh for %d classes",
            network.weights,
            network.num_classes,
        )
        features = predictor.cls_score.in_features
        model.roi_heads.box_predictor = FastRCNNPredictor(features, network.num_classes)
        set_biases(model, None, rcnn_bias)
    return model


@torch.no_grad()
def set_biases(model: FasterRCNN, rpn: Tensor | None, rcnn: Tensor | None) -> None:
    """Start the class logits of RPN and box predictor at [2] and [C+1] biases; None leaves them."""
    if rpn is not None:
        model.rpn.head.cls_logits.bias.fill_(rpn[1] - rpn[0])
    if rcnn is not None:
        model.roi_heads.box_predictor.cls_score.bias.copy_(rcnn)


def freeze_stages(model: FasterRCNN, family: Family, trainable: int) -> None:
    """Let only the last ``trainable`` stages of the backbone train, 0 to 5.

    Raises:
        ConfigError: another number, or a family whose stages torchvision alone can freeze.
    """
    key = "model.trainable_backbone_layers"
    if family.stages is None:
        raise ConfigError(f"{key}: with a weights file for ResNets and timm networks only")
    if not 0 <= trainable <= STAGES:
        raise ConfigError(f"{key}: expected 0 to {STAGES}, got {trainable}")
    body = model.backbone.body
    if trainable in (0, STAGES):
        body.requires_grad_(trainable == STAGES)
        return
    for name, stage in family.stages(model).items():
        body.get_parameter(name).requires_grad_(stage >= STAGES - trainable)


def _set_batch_norm(backbone: nn.Module, frozen: bool) -> None:
    if not isinstance(backbone, TimmPyramid):
        raise ConfigError(f"model.freeze_batch_norm: only with name={TIMM}")
    if frozen:
        backbone.freeze_batch_norm()
    else:
        backbone.train_batch_norm()


def _refuse(network: Network, reason: str, *keys: str) -> None:
    """Raise ConfigError if one of these arguments differs from its default."""
    given = vars(network) | network.width._asdict()
    usual = vars(Network("", None)) | STOCK._asdict()
    for key in keys:
        if given[key] != usual[key]:
            raise ConfigError(f"model.{key}: {reason}")


# ResNets and MobileNets of torchvision


def _of_torchvision(network: Network) -> FasterRCNN:
    """The detector that torchvision's builder of this name makes."""
    name = network.name
    _refuse(network, f"only with name={TIMM}, not {name}", "backbone", "freeze_batch_norm")
    if network.width != STOCK:
        raise ConfigError(
            f"model.fpn_channels, model.representation_size, model.backbone_width: {name} is "
            f"torchvision's own, with {STOCK.fpn_channels}, {STOCK.representation_size} and 1"
        )
    builder = getattr(models.detection, name)
    return builder(
        weights=_member(models.get_model_weights(builder), network.weights, "model.weights"),
        weights_backbone=_member(_backbone_weights(name), network.weights_backbone),
        num_classes=network.num_classes,
        trainable_backbone_layers=network.trainable_backbone_layers,
        **network.options,
    )


def _over_resnet(network: Network) -> FasterRCNN:
    """The same over a ResNet of a depth that torchvision has no builder for."""
    name, weights = network.name, network.weights_backbone
    _refuse(network, f"only with name={TIMM}, not {name}", "backbone", "freeze_batch_norm")
    _refuse(network, f"torchvision has no detector weights for {name}", "weights")
    if weights is not None:
        _refuse(network, f"weights {weights} are for 1", "backbone_width")
    backbone = resnet_fpn_backbone(
        backbone_name=_backbone_name(name),
        weights=_member(_backbone_weights(name), weights),
        norm_layer=nn.BatchNorm2d if weights is None else FrozenBatchNorm2d,
        trainable_layers=_trainable_layers(network),
    )
    if network.width != STOCK:
        _set_width(backbone, network.width)
    return _detector(backbone, network)


def _trainable_layers(network: Network) -> int:
    """torchvision's rule: without weights all stages train, since their values are random."""
    pretrained = network.weights_backbone is not None
    return _validate_trainable_layers(pretrained, network.trainable_backbone_layers, STAGES, 3)


def _detector(backbone: Any, network: Network, **options: Any) -> FasterRCNN:
    """A Faster R-CNN with torchvision's parts over a backbone, a module with ``out_channels``."""
    options |= network.options
    size = network.width.representation_size
    if network.width == STOCK:
        return FasterRCNN(backbone, network.num_classes, **options)
    return FasterRCNN(
        backbone,
        box_head=TwoMLPHead(backbone.out_channels * ROI_SIZE**2, size),
        box_predictor=FastRCNNPredictor(size, network.num_classes),
        **options,
    )


def _set_width(backbone: BackboneWithFPN, width: Width) -> None:
    """Give a ResNet-FPN other numbers of channels."""
    inputs = [block[0].in_channels for block in backbone.fpn.inner_blocks]
    if width.backbone_width != 1:
        scale_channels(backbone.body, width.backbone_width)
        inputs = [_scaled(channels, width.backbone_width) for channels in inputs]
    backbone.fpn = FeaturePyramidNetwork(
        inputs, width.fpn_channels, extra_blocks=LastLevelMaxPool()
    )
    backbone.out_channels = width.fpn_channels


def scale_channels(module: nn.Module, width: float) -> None:
    """Multiply the channels of every layer of a ResNet by ``width``, and start its weights afresh.

    The width multiplier of MobileNet (arXiv 1704.04861, sec. 3.3). Weights start as in
    torchvision's ResNets.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            image = child.in_channels == RGB
            scaled = nn.Conv2d(
                RGB if image else _scaled(child.in_channels, width),
                _scaled(child.out_channels, width),
                bias=False,
                **{key: getattr(child, key) for key in ("kernel_size", "stride", "padding")},
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


def _where_to_put(network: Network, error: OSError) -> str:
    name, weights = network.name, network.weights or network.weights_backbone
    kind = _backbone_weights(name) if network.weights is None else models.get_model_weights(name)
    file = Path(kind[weights].url).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    reason = getattr(error, "reason", error)
    return (
        f"weights {weights} of {name} cannot be downloaded ({reason}): "
        f"put the file {file} into {folder}, or choose model.weights=FILE or null"
    )


def _resnet_stages(model: FasterRCNN) -> dict[str, int]:
    names = [name for name, _ in model.backbone.body.named_parameters()]
    return {name: RESNET_STAGES[name.partition(".")[0]] for name in names}


# timm networks


def _over_timm(network: Network) -> FasterRCNN:
    """A detector over a timm network, which normalizes images as the network was trained."""
    name, weights = network.backbone, network.weights_backbone
    if not isinstance(name, str):
        raise ConfigError(f"model.backbone: expected the name of a timm network, got {name!r}")
    _refuse(network, f"torchvision has no detector weights for {TIMM}", "weights")
    _refuse(network, "for ResNet-18, 34 and 101 only", "backbone_width")
    backbone = timm_pyramid(name, weights, network.width.fpn_channels)
    frozen = weights is not None
    if network.freeze_batch_norm is not None:
        frozen = network.freeze_batch_norm
    _set_batch_norm(backbone, frozen)
    model = _detector(backbone, network, **normalization(name))
    freeze_stages(model, FAMILIES[TIMM], _trainable_layers(network))
    return model


# A backbone of the user's


@torch.no_grad()
def level_names(backbone: nn.Module) -> list[str]:
    """The names of the feature maps that a backbone returns, finest first.

    A backbone that returns one [B, C, H, W] tensor has the level "0", as in torchvision.
    """
    training = backbone.training
    some = next(backbone.parameters(), torch.zeros(0))
    image = torch.zeros(1, RGB, PROBE, PROBE, device=some.device, dtype=some.dtype)
    maps = backbone.eval()(image)  # in eval mode no statistics move
    backbone.train(training)
    return ["0"] if isinstance(maps, Tensor) else list(maps)


def _over_module(network: Network, levels: Sequence[str]) -> FasterRCNN:
    """A detector over a user's module, which brings its weights and channels."""
    own = ("weights_backbone", "trainable_backbone_layers", "freeze_batch_norm")
    _refuse(network, "given a backbone, set this on it", *own, "fpn_channels", "backbone_width")
    _refuse(network, "given a backbone, choose a file or null", "weights")
    if len(levels) != LEVELS and "rpn_anchor_generator" not in network.options:
        raise ConfigError(f"model.anchor_sizes: the backbone has {len(levels)} levels, give sizes")
    pooled = [name for name in levels if name != "pool"]  # which serves the RPN only
    roi_pool = MultiScaleRoIAlign(pooled, output_size=ROI_SIZE, sampling_ratio=2)
    return _detector(network.backbone, network, box_roi_pool=roi_pool)


TORCHVISION_RESNET = Family(_of_torchvision, _resnet_stages, LEVELS)
TORCHVISION_MOBILENET = Family(_of_torchvision, None, None)
RESNET = Family(_over_resnet, _resnet_stages, LEVELS)

FAMILIES = {
    "fasterrcnn_resnet18_fpn": RESNET,
    "fasterrcnn_resnet34_fpn": RESNET,
    "fasterrcnn_resnet50_fpn": TORCHVISION_RESNET,
    "fasterrcnn_resnet50_fpn_v2": TORCHVISION_RESNET,
    "fasterrcnn_resnet101_fpn": RESNET,
    "fasterrcnn_mobilenet_v3_large_fpn": TORCHVISION_MOBILENET,
    "fasterrcnn_mobilenet_v3_large_320_fpn": TORCHVISION_MOBILENET,
    TIMM: Family(_over_timm, lambda model: model.backbone.stages(), LEVELS),
}
