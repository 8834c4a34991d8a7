"""timm networks (https://github.com/huggingface/pytorch-image-models) as backbones.

timm is an optional dependency: it is imported when a timm network is built.
"""

import difflib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from frcnn.errors import ConfigError, UserError
from frcnn.model.weights import classifier_weights, file_weights

log = logging.getLogger(__name__)

PRETRAINED = "pretrained"  # the weights that timm downloads
STEM_STRIDE = 2
STRIDES = (4, 8, 16, 32)  # of the feature maps that go into the pyramid
PROBE = (64, 96)  # height and width of the image that a new body is tried with


class TimmPyramid(nn.Module):
    """The feature maps of a timm network under torchvision's feature pyramid.

    The pyramid (arXiv 1612.03144) has levels as torchvision's ResNet-FPN has them: by default "0"
    to "3" of strides 4 to 32, and "pool" of stride 64.

    Args:
        name: of the network, for messages.
        body: what ``timm.create_model(name, features_only=True)`` returns.
        out_channels: of every level.
        first_stage: of the body whose feature map goes into the pyramid, 1 (stride 4) to 4.
        extra_levels: what adds the coarsest levels; None = a pooled one.

    Raises:
        ConfigError: the body lacks a feature map of stride 4, 8, 16 or 32, or takes images of one
            size only.
    """

    def __init__(
        self,
        name: str,
        body: Any,
        out_channels: int,
        first_stage: int = 1,
        extra_levels: ExtraFPNBlock | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        info = body.feature_info.get_dicts()
        self.taps = {entry["reduction"]: (index, entry) for index, entry in enumerate(info)}
        if not self.taps.keys() >= set(STRIDES):
            raise ConfigError(
                f"model.backbone: {name} has feature maps of stride {_joined(self.taps)}, "
                f"expected {_joined(STRIDES)}"
            )
        self.strides = STRIDES[first_stage - 1 :]
        channels = [self.taps[stride][1]["num_chs"] for stride in self.strides]
        self.body = body
        extra_levels = extra_levels or LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=extra_levels)
        self.out_channels = out_channels
        self._try_out(channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> the levels by name, each [B, out_channels, H / stride, W / stride]."""
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self._maps(images))))

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps that go into the pyramid, [B, C, H / stride, W / stride]."""
        maps = self.body(images)
        maps = [maps[self.taps[stride][0]] for stride in self.strides]
        channels_last = getattr(self.body, "output_fmt", None) == "NHWC"
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if channels_last else maps

    @torch.no_grad()
    def _try_out(self, channels: list[int]) -> None:
        """Raise ConfigError unless the body gives feature maps of the right shapes."""
        height, width = PROBE
        self.eval()  # no statistics move
        try:
            found = [list(m.shape) for m in self._maps(torch.zeros(1, 3, height, width))]
        except Exception as error:  # networks of timm raise different errors
            raise ConfigError(
                f"model.backbone: {self.name} does not take images of every size ({error})"
            ) from error
        self.train()
        pairs = zip(channels, self.strides, strict=True)
        expected = [[1, c, height // s, width // s] for c, s in pairs]
        if found != expected:
            raise ConfigError(
                f"model.backbone: {self.name} gives maps {found}, expected {expected}"
            )

    def stages(self) -> dict[str, int]:
        """The stage of each parameter of the body, from 0 (the stem) to 4 (the last).

        A stage ends where the feature map of its stride leaves the body.

        Raises:
            ConfigError: the body does not compute its feature maps one after another.
        """
        modules = [name for name, _ in self.body.named_modules()]
        spans = {stride: _span(modules, tap["module"]) for stride, (_, tap) in self.taps.items()}
        found = [span for stride in STRIDES if (span := spans[stride])]
        if len(found) < len(STRIDES):
            raise ConfigError(
                f"model.trainable_backbone_layers: {self.name} has no stages, choose 0 or 5"
            )
        stem = spans.get(STEM_STRIDE)
        ends = [stem[1] if stem else found[0][0] - 1, *(last for _, last in found[:-1])]
        order = {name: index for index, name in enumerate(modules)}
        return {
            name: sum(order[name.rpartition(".")[0]] > end for end in ends)
            for name, _ in self.body.named_parameters()
        }

    def freeze_batch_norm(self) -> None:
        """Freeze every BatchNorm of the body: its statistics, factors and shifts.

        timm's layers also hold the activation, which only timm's own helper keeps.
        """
        from timm.layers import freeze_batch_norm_2d

        freeze_batch_norm_2d(self.body)

    def train_batch_norm(self) -> None:
        """Make every frozen BatchNorm of the body one that trains, with the same numbers."""
        from timm.layers import unfreeze_batch_norm_2d

        unfreeze_batch_norm_2d(self.body)


def timm_pyramid(
    name: str,
    weights: str | None,
    out_channels: int,
    first_stage: int = 1,
    extra_levels: ExtraFPNBlock | None = None,
) -> TimmPyramid:
    """A timm network under a feature pyramid, with everything trainable.

    Args:
        name: timm's, alone or with the name of its weights: "resnet18", "resnet18.a1_in1k".
        weights: None, "pretrained" (timm downloads them), or a file of an image classifier.
        out_channels: of every level of the pyramid.
        first_stage, extra_levels: see ``TimmPyramid``.

    Raises:
        ConfigError: no such network, or one without a pyramid's feature maps.
        UserError: timm is not installed, or the weights are not there or do not fit.
    """
    config = _pretrained_config(name)
    options: dict[str, Any] = {"features_only": True}
    if config.fixed_input_size:
        options["strict_img_size"] = False  # Swin: windows of one size, images of any
    if weights == PRETRAINED:
        body = _downloaded(name, config, options)
    elif weights is None:
        body = _created(name, **options)
    elif Path(weights).suffix:
        body = _created(name, **options, **_weights_options(name, config, weights))
        body.pretrained_cfg.pop("state_dict")
    else:
        raise ConfigError(
            f"model.weights_backbone: {weights!r} is not one of null, {PRETRAINED}, or a file; "
            f"to choose among timm's weights of a network, write model.backbone=NETWORK.WEIGHTS"
        )
    return TimmPyramid(name, body, out_channels, first_stage, extra_levels)


def normalization(name: str) -> dict[str, list[float]]:
    """The mean and standard deviation of each color that a timm network was trained with.

    Returns:
        Arguments of torchvision's ``FasterRCNN``.
    """
    config = _pretrained_config(name)
    return {"image_mean": list(config.mean), "image_std": list(config.std)}


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install -e '.[timm]'") from error
    return timm


def _pretrained_config(name: str) -> Any:
    """timm's record of a network and its weights."""
    timm = _timm()
    network, _, tag = str(name).partition(".")
    if not timm.is_model(network):
        close = difflib.get_close_matches(network, timm.list_models())
        near = f", did you mean {_joined(close)}?" if close else ""
        raise ConfigError(f"model.backbone: timm has no network {name!r}{near}")
    tags = [entry.partition(".")[2] for entry in timm.list_models(f"{network}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ConfigError(
            f"model.backbone: timm has the weights {_joined(tags)} of {network}, not {tag}"
        )
    return timm.models.get_pretrained_cfg(name)


def _created(name: str, **options: Any) -> Any:
    try:
        with _quiet():
            return _timm().create_model(name, **options)
    except (TypeError, AttributeError, AssertionError, RuntimeError) as error:
        one_size = "strict_img_size" in str(error)  # the network does not know the option
        reason = "takes images of one size only" if one_size else f"gives no feature maps ({error})"
        raise ConfigError(f"model.backbone: {name} {reason}") from error


def _downloaded(name: str, config: Any, options: dict[str, Any]) -> Any:
    if not config.has_weights:
        raise ConfigError(f"model.weights_backbone: timm has no weights of {name}, choose null")
    log.info("weights of %s: from %s", name, config.hf_hub_id or config.url)
    try:
        with _quiet():
            return _timm().create_model(name, pretrained=True, **options)
    except Exception as error:  # timm's two download clients raise different errors
        reason = str(getattr(error, "reason", error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"weights of {name} cannot be downloaded from {config.hf_hub_id or config.url} "
            f"({reason}): choose model.weights_backbone=FILE or null"
        ) from error


def _weights_options(name: str, config: Any, path: str) -> dict[str, Any]:
    """Arguments of timm's ``create_model`` that load a file."""
    own = _created(name).state_dict()
    head = config.classifier or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    state = classifier_weights(file_weights(path), own, head, f"weights {path}")
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of timm's: of each retry, and of a classifier that is not loaded."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _joined(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values) or "none"


def _span(modules: list[str], tap: str) -> tuple[int, int] | None:
    """The first and last index of a module and all inside it; None if there is no such module.

    timm's wrappers join two levels of names ("stages.0" becomes "stages_0") or add one.
    """
    flat = [name.replace(".", "_") + "_" for name in modules]
    for prefix in ("", "body_", "model_"):
        start = f"{prefix}{tap.replace('.', '_')}_"
        found = [index for index, name in enumerate(flat) if name.startswith(start)]
        if found:
            return found[0], found[-1]
    return None
