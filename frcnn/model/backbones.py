"""Detectors of torchvision's parts over any backbone, with their starting weights.

A ``Family`` describes one kind of backbone. To add one, write its ``build`` function and name it in
``FAMILIES``.
"""

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import (
    BackboneWithFPN,
    _validate_trainable_layers,
    resnet_fpn_backbone,
)
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from frcnn.errors import ConfigError, UserError
from frcnn.model.architectures import Architecture, Biases
from frcnn.model.downloads import cached, fetch
from frcnn.model.timm_pyramid import TimmPyramid, normalization, timm_pyramid
from frcnn.model.weights import classifier_weights, file_weights, freeze_batch_norm, load_into

log = logging.getLogger(__name__)

AUTO = "auto"  # torchvision's COCO weights where there are any and they can be had
COCO_V1 = {  # trained with BatchNorm of epsilon 0
    "fasterrcnn_resnet50_fpn": models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    "retinanet_resnet50_fpn": models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
}
RGB = 3  # channels of an image
STAGES = 5  # of a backbone: the stem, and one stage for each stride from 4 to 32
TRAINED_STAGES = 3  # of a backbone with ImageNet weights, as in torchvision
PROBE = 128  # side in pixels of the image that tells the levels of a user's backbone
TIMM_ONLY = ("backbone", "freeze_batch_norm")
RESNET_STAGES = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}


class Width(NamedTuple):
    """How wide a backbone and its pyramid are.

    Args:
        fpn_channels: of every pyramid level.
        backbone_width: factor of torchvision's channels, in every layer of the ResNet.
    """

    fpn_channels: int = 256
    backbone_width: float = 1.0


STOCK = Width()


@dataclass(frozen=True)
class Network:
    """What a detector is built from; the fields are arguments of ``build_detector``.

    Args:
        num_classes: C + 1; None = that of torchvision's detector weights.
        options: arguments of torchvision's ``FasterRCNN`` or ``RetinaNet``.
    """

    architecture: Architecture
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
        fixed_anchors: True where torchvision's builder sets levels and anchors (MobileNet).
    """

    build: Callable[[Network], Any]
    stages: Callable[[Any], Mapping[str, int]] | None
    fixed_anchors: bool = False


def family_of(architecture: Architecture, name: str, backbone: str | nn.Module | None) -> Family:
    """The family that builds a detector of this name, or over this module.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(backbone, nn.Module):
        return Family(_over_module, None)
    names = [known for known in FAMILIES if known.startswith(architecture.prefix)]
    if name not in names:
        raise ConfigError(f"model.name: {name!r} is not one of {', '.join(names)}")
    return FAMILIES[name]


def num_levels(
    architecture: Architecture, name: str, backbone: str | nn.Module | None
) -> int | None:
    """Levels of a network's pyramid; None if its builder chooses them together with the anchors."""
    if isinstance(backbone, nn.Module):
        return len(level_names(backbone))
    return None if family_of(architecture, name, None).fixed_anchors else architecture.levels


def _family(network: Network) -> Family:
    return family_of(network.architecture, network.name, network.backbone)


def build_base(network: Network, biases: Biases) -> Any:
    """A detector of torchvision's parts with its starting weights.

    Its ``initial_weights`` are what ``Network.weights`` came to, where that is "auto".

    As in torchvision, weights of the backbone freeze BatchNorm and the first stages; from scratch
    everything trains. With a file of a whole detector everything trains but the BatchNorm that was
    frozen when the file was saved.

    Args:
        biases: what the class logits of each site start with where no weights are loaded into
            them; None = as torchvision has it.

    Raises:
        ConfigError: an unknown choice, or choices that cannot be combined.
        UserError: weights that are missing or do not fit.
    """
    if network.weights == AUTO:
        network = replace(network, weights=auto_weights(network))
    model = _with_weights(network, biases)
    model.initial_weights = network.weights
    return model


def auto_weights(network: Network) -> str | None:
    """The name of torchvision's COCO weights of a network; None where they cannot be had.

    One log line says what was found, or how to get it.
    """
    said = f"model.weights={AUTO}"
    if network.weights_backbone is not None:
        log.info("%s: none, model.weights_backbone names the weights to start from", said)
        return None
    weights = coco_weights(network)
    if weights is None:
        log.info(
            "%s: torchvision has no COCO weights for this %s: training from scratch; "
            "model.weights_backbone starts from a trained backbone",
            said,
            network.name,
        )
        return None
    try:
        fetch(weights.url)
    except OSError as error:
        log.warning(
            "%s: TRAINING FROM SCRATCH, the trained weights are not here and %s cannot be "
            "downloaded (%s): put it into %s, or choose model.weights=null",
            said,
            weights.url,
            getattr(error, "reason", error),
            cached(weights.url).parent,
        )
        return None
    log.info("%s: %s of COCO (%s)", said, weights.name, cached(weights.url))
    return weights.name


def coco_weights(network: Network) -> models.WeightsEnum | None:
    """torchvision's COCO weights that fit a network; None where there are none."""
    if not isinstance(network.backbone, nn.Module) and _family(network).build is _of_torchvision:
        weights = models.get_model_weights(network.name).DEFAULT
        with suppress(ConfigError):
            network.architecture.check_torchvision(network.name, weights.name)
            return weights
    return None


def _with_weights(network: Network, biases: Biases) -> Any:
    if network.weights is None:
        model = _built(network)
        network.architecture.set_biases(model, biases)
        return model
    if Path(network.weights).suffix:
        return _from_file(network, biases)
    return _from_named_weights(network, biases)


def zero_epsilon(name: str, weights: str | None) -> bool:
    """Whether the BatchNorm of a network that started from these weights has epsilon 0."""
    if weights is None or name not in COCO_V1:
        return False
    known = COCO_V1[name]
    return weights in (known.name, "DEFAULT") or Path(weights).name == Path(known.url).name


def _built(network: Network) -> Any:
    """A detector with the weights that have a name, and those of a backbone."""
    family, file = _family(network), network.weights_backbone
    if family.build in (_of_torchvision, _over_resnet) and file and Path(file).suffix:
        return _with_backbone_file(network, family)
    try:
        return family.build(network)
    except ValueError as error:  # stages out of range
        raise ConfigError(f"model: {error}") from error
    except OSError as error:  # no network, a timeout, a reset
        raise UserError(_where_to_put(network, error)) from error


def _from_file(network: Network, biases: Biases) -> Any:
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
    architecture = network.architecture
    # The bias is kept if the file's predictor is for other classes.
    architecture.set_biases(model, biases, predictor_only=True)
    load_into(model, file_weights(path), architecture.predictor, f"weights {path}")
    if zero_epsilon(network.name, path):
        overwrite_eps(model, 0.0)  # torchvision does the same for the named weights
    if network.trainable_backbone_layers is not None:
        freeze_stages(model, _family(network), network.trainable_backbone_layers)
    if network.freeze_batch_norm is not None:
        _set_batch_norm(model.backbone, network)
    return model


def _from_named_weights(network: Network, biases: Biases) -> Any:
    """A detector with torchvision's detector weights; the predictor is for our classes."""
    model = _built(replace(network, num_classes=None, weights_backbone=None))
    columns, architecture = network.num_classes, network.architecture
    if columns is not None and columns != architecture.columns(model):
        log.info("weights %s: the predictor starts afresh for %d classes", network.weights, columns)
        architecture.reset_predictor(model, columns)
        architecture.set_biases(model, biases, predictor_only=True)
    return model


def _with_backbone_file(network: Network, family: Family) -> Any:
    """A detector over a ResNet with the weights of an image classifier's file.

    What trains and what is frozen is as with torchvision's own weights of that backbone.
    """
    trained = network.trainable_backbone_layers
    plain = replace(network, weights_backbone=None, trainable_backbone_layers=None)
    if family.stages is None:
        raise ConfigError(
            f"model.weights_backbone: a file is for ResNets and timm networks, not {network.name}"
        )
    model = _built(plain)
    body, path = model.backbone.body, str(network.weights_backbone)
    own = body.state_dict() | dict.fromkeys(("fc.weight", "fc.bias"), torch.zeros(0))
    state = classifier_weights(file_weights(path), own, ("fc",), f"weights {path}")
    body.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")}, strict=False)
    if not network.name.endswith("_v2"):  # whose BatchNorm torchvision trains
        freeze_batch_norm(body)
    freeze_stages(model, family, TRAINED_STAGES if trained is None else trained)
    return model


def freeze_stages(model: Any, family: Family, trainable: int) -> None:
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


def _set_batch_norm(backbone: nn.Module, network: Network) -> None:
    if not isinstance(backbone, TimmPyramid):
        raise ConfigError(f"model.freeze_batch_norm: only with name={_timm_name(network)}")
    if network.freeze_batch_norm:
        backbone.freeze_batch_norm()
    else:
        backbone.train_batch_norm()


def _timm_name(network: Network) -> str:
    return f"{network.architecture.prefix}_timm"


def _refuse(network: Network, reason: str, *keys: str) -> None:
    """Raise ConfigError if one of these arguments differs from its default."""
    given = vars(network) | network.width._asdict()
    usual = vars(Network(network.architecture, "", None)) | STOCK._asdict()
    for key in keys:
        if given[key] != usual[key]:
            raise ConfigError(f"model.{key}: {reason}")


# ResNets and MobileNets of torchvision


def _of_torchvision(network: Network) -> Any:
    """The detector that torchvision's builder of this name makes."""
    name = network.name
    _refuse(network, f"only with name={_timm_name(network)}, not {name}", *TIMM_ONLY)
    if network.width != STOCK:
        raise ConfigError(
            f"model.fpn_channels, model.backbone_width: {name} is torchvision's own, "
            f"with {STOCK.fpn_channels} and 1"
        )
    network.architecture.check_torchvision(name, network.weights)
    builder = getattr(models.detection, name)
    model = builder(
        weights=_weights_named(models.get_model_weights(builder), network.weights, "model.weights"),
        weights_backbone=_weights_named(_backbone_weights(name), network.weights_backbone),
        num_classes=network.num_classes,
        trainable_backbone_layers=network.trainable_backbone_layers,
        **network.options,
    )
    network.architecture.replace_parts(model)
    return model


def _over_resnet(network: Network) -> Any:
    """The same over a ResNet of a depth that torchvision has no builder for."""
    name, weights = network.name, network.weights_backbone
    _refuse(network, f"only with name={_timm_name(network)}, not {name}", *TIMM_ONLY)
    _refuse(network, f"torchvision has no detector weights for {name}", "weights")
    if weights is not None:
        _refuse(network, f"weights {weights} are for 1", "backbone_width")
    backbone = resnet_fpn_backbone(
        backbone_name=_backbone_name(name),
        weights=_weights_named(_backbone_weights(name), weights),
        norm_layer=nn.BatchNorm2d if weights is None else FrozenBatchNorm2d,
        trainable_layers=_trainable_layers(network),
        returned_layers=list(range(network.architecture.first_stage, STAGES)),
        extra_blocks=network.architecture.extra_levels(STOCK.fpn_channels),
    )
    if network.width != STOCK:
        _set_width(backbone, network)
    return _over(backbone, network)


def _trainable_layers(network: Network) -> int:
    """torchvision's rule: without weights all stages train, since their values are random."""
    pretrained = network.weights_backbone is not None
    return _validate_trainable_layers(
        pretrained, network.trainable_backbone_layers, STAGES, TRAINED_STAGES
    )


def _over(backbone: Any, network: Network, **options: Any) -> nn.Module:
    """A detector with torchvision's parts over a backbone, a module with ``out_channels``."""
    assert network.num_classes is not None
    options |= network.options
    return network.architecture.build_over(backbone, network.num_classes, **options)


def _set_width(backbone: BackboneWithFPN, network: Network) -> None:
    """Give a ResNet-FPN other numbers of channels."""
    width = network.width
    inputs = [block[0].in_channels for block in backbone.fpn.inner_blocks]
    if width.backbone_width != 1:
        scale_channels(backbone.body, width.backbone_width)
        inputs = [_scaled(channels, width.backbone_width) for channels in inputs]
    backbone.fpn = FeaturePyramidNetwork(
        inputs,
        width.fpn_channels,
        extra_blocks=network.architecture.extra_levels(width.fpn_channels),
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
    return re.sub(r"^[a-z]+_|(_320)?_fpn(_v2)?$", "", name)


def _backbone_weights(name: str) -> type[models.WeightsEnum]:
    return models.get_model_weights(_backbone_name(name))


def _weights_named(
    kind: type[models.WeightsEnum], name: str | None, key: str = "model.weights_backbone"
) -> models.WeightsEnum | None:
    """torchvision's weights of this name, whose file is in the cache then."""
    if name is None:
        return None
    if name not in kind.__members__:
        known = ", ".join(["null", *kind.__members__, "a file (.pt, .pth)"])
        raise ConfigError(f"{key}: {name!r} is not one of {known}")
    fetch(kind[name].url)
    return kind[name]


def _where_to_put(network: Network, error: OSError) -> str:
    name, weights = network.name, network.weights or network.weights_backbone
    kind = _backbone_weights(name) if network.weights is None else models.get_model_weights(name)
    path = cached(kind[weights].url)
    reason = getattr(error, "reason", error)
    return (
        f"weights {weights} of {name} cannot be downloaded ({reason}): "
        f"put the file {path.name} into {path.parent}, or choose model.weights=FILE or null"
    )


def _resnet_stages(model: Any) -> dict[str, int]:
    names = [name for name, _ in model.backbone.body.named_parameters()]
    return {name: RESNET_STAGES[name.partition(".")[0]] for name in names}


# timm networks


def _over_timm(network: Network) -> Any:
    """A detector over a timm network, which normalizes images as the network was trained."""
    name, weights, architecture = network.backbone, network.weights_backbone, network.architecture
    if not isinstance(name, str):
        raise ConfigError(f"model.backbone: expected the name of a timm network, got {name!r}")
    _refuse(network, f"torchvision has no detector weights for {_timm_name(network)}", "weights")
    _refuse(network, "for ResNet-18, 34 and 101 only", "backbone_width")
    channels = network.width.fpn_channels
    extra = architecture.extra_levels(channels)
    backbone = timm_pyramid(name, weights, channels, architecture.first_stage, extra)
    if network.freeze_batch_norm is None:
        network = replace(network, freeze_batch_norm=weights is not None)
    _set_batch_norm(backbone, network)
    model = _over(backbone, network, **normalization(name))
    freeze_stages(model, TIMM, _trainable_layers(network))
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


def _over_module(network: Network) -> Any:
    """A detector over a module, whose weights and channels are its maker's."""
    own = ("weights_backbone", "trainable_backbone_layers", "freeze_batch_norm")
    _refuse(network, "given a backbone, set this on it", *own, "fpn_channels", "backbone_width")
    _refuse(network, "given a backbone, choose a file or null", "weights")
    assert isinstance(network.backbone, nn.Module)
    return _over(network.backbone, network, names=level_names(network.backbone))


TORCHVISION_RESNET = Family(_of_torchvision, _resnet_stages)
TORCHVISION_MOBILENET = Family(_of_torchvision, None, fixed_anchors=True)
RESNET = Family(_over_resnet, _resnet_stages)
TIMM = Family(_over_timm, lambda model: model.backbone.stages())

FAMILIES = {
    "fasterrcnn_resnet18_fpn": RESNET,
    "fasterrcnn_resnet34_fpn": RESNET,
    "fasterrcnn_resnet50_fpn": TORCHVISION_RESNET,
    "fasterrcnn_resnet50_fpn_v2": TORCHVISION_RESNET,
    "fasterrcnn_resnet101_fpn": RESNET,
    "fasterrcnn_mobilenet_v3_large_fpn": TORCHVISION_MOBILENET,
    "fasterrcnn_mobilenet_v3_large_320_fpn": TORCHVISION_MOBILENET,
    "fasterrcnn_timm": TIMM,
    "retinanet_resnet18_fpn": RESNET,
    "retinanet_resnet34_fpn": RESNET,
    "retinanet_resnet50_fpn": TORCHVISION_RESNET,
    "retinanet_resnet50_fpn_v2": TORCHVISION_RESNET,
    "retinanet_resnet101_fpn": RESNET,
    "retinanet_timm": TIMM,
}
