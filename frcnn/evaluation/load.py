"""A detector out of a checkpoint, ready to use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection._utils import overwrite_eps

from frcnn import losses
from frcnn.build import dataset, detector
from frcnn.config.checks import check_target
from frcnn.config.compose import target_of
from frcnn.data import DetectionDataset
from frcnn.errors import ConfigError, UserError
from frcnn.model import Detector
from frcnn.model.weights import PREDICTOR, load_into
from frcnn.parallel.device import choose_device, choose_precision
from frcnn.runfolder import checkpoint
from frcnn.sites import assigners, weighers

# What the parts of a run that a trained detector needs are made of, and nothing else.
OWN = {
    f"{package.__name__}.{name}"
    for package in (losses, assigners, weighers)
    for name in package.__all__
}
OWN |= {f"frcnn.data.{reader}" for reader in ("coco", "coco2017", "roboflow", "shapes", "voc")}
OWN |= {"frcnn.model.build_detector"}
PARTS = ("model", "data", "assigner", "loss", "box_loss", "weigher")
HYDRA_KEYS = ("_target_", "_partial_")
MOST_VALUES = 100_000


@dataclass
class Trained:
    """A detector with what its checkpoint says of it."""

    detector: Detector
    config: dict[str, Any]
    class_names: list[str]
    category_ids: list[int | str]
    device: torch.device
    dtype: torch.dtype


def load_trained(path: str, device: str, precision: str, trust: Sequence[str] = ()) -> Trained:
    """The detector of a checkpoint, in eval mode.

    Args:
        trust: packages whose code the checkpoint may name, beside this project's own.

    Raises:
        UserError: no usable checkpoint, one with numbers that are not finite, or one whose
            configuration names code of a package that is not trusted: a file must not choose what
            code runs.
    """
    saved = checkpoint.load(Path(path))
    place = choose_device(device)
    with checkpoint.as_user_error(path):
        # Samplers, optimizer and the like are training's, and may be the user's own.
        config = {part: saved["config"][part] for part in PARTS}
        refuse_foreign(config, path, trust)
        _check_values("model", config["model"], path)
        base, start = config["model"].get("name"), config["model"].get("weights")
        without = dict.fromkeys({"weights", "weights_backbone"} & config["model"].keys())
        config["model"] |= without
        model = detector(config, len(saved["class_names"]) + 1)
        _refuse_other_classes(saved, path)
        load_into(model, saved["model"], path)
        model.sites.load_state_dict(saved["sites"])
    _refuse_diverged(model, path)
    if base == "fasterrcnn_resnet50_fpn" and start in ("COCO_V1", "DEFAULT"):
        overwrite_eps(model, 0.0)  # these weights were trained so, and torchvision sets it so
    return Trained(
        model.to(place).eval(),
        config,
        saved["class_names"],
        saved["category_ids"],
        place,
        choose_precision(precision, place),
    )


def own_data(trained: Trained, path: str, split: str) -> DetectionDataset:
    """The data that a detector was trained with, from the checkpoint at ``path``."""
    with checkpoint.as_user_error(path):
        _check_values("data", trained.config["data"], path)
        return dataset(trained.config["data"], split)


def chosen_data(trained: Trained, config: dict[str, Any], split: str) -> DetectionDataset:
    """A split of the data that a command names, or else of the detector's own.

    Args:
        config: the command's: "data", a node or None, and "checkpoint", the detector's path.

    Raises:
        UserError: the data cannot be read, or has other classes than the detector.
    """
    if config.get("data"):
        images = dataset(config["data"], split)
    else:
        images = own_data(trained, config["checkpoint"], split)
    if list(images.class_names) != trained.class_names:
        raise UserError(
            f"the data has the classes {', '.join(images.class_names)}, "
            f"the checkpoint {', '.join(trained.class_names)}"
        )
    return images


def refuse_foreign(config: dict[str, Any], path: str, trust: Sequence[str] = ()) -> None:
    """Refuse what could make Hydra run code or look anything up while it builds a configuration.

    Plain values, lists and dicts by texts pass; classes are those in ``OWN``, and no text holds an
    interpolation, which could create a node or read the environment. A pickle's lists can hold
    themselves, or each other a billion times: the count of values is limited.

    Raises:
        UserError: naming what was found.
    """
    left: list[Any] = [config]
    for _ in range(MOST_VALUES):
        if not left:
            return
        value = left.pop()
        if isinstance(value, dict):
            _refuse_keys(value, path, trust)
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and "${" in value:
            raise UserError(f"{path}: its configuration holds {value!r}, which is no plain value")
        elif not isinstance(value, str | int | float | None):
            raise UserError(f"{path}: its configuration holds a {type(value).__name__}")
    raise UserError(f"{path}: its configuration holds more than {MOST_VALUES} values")


def _refuse_keys(node: dict[Any, Any], path: str, trust: Sequence[str]) -> None:
    for key in node:
        if not isinstance(key, str) or (key.startswith("_") and key not in HYDRA_KEYS):
            raise UserError(f"{path}: its configuration has the key {key!r}, which is not ours")
    if "_target_" not in node:
        return
    target = str(node["_target_"])
    package = target.partition(".")[0]
    if target not in OWN and package not in trust:
        hint = "" if package in ("frcnn", "samplers") else f"; trust=[{package}] runs it"
        raise UserError(
            f"{path}: its configuration names {target}, which is not this project's code{hint}"
        )


def _check_values(part: str, node: dict[str, Any], path: str) -> None:
    """Refuse values that no command line could give; some would fail at the first image only."""
    try:
        check_target(part, target_of(part, node), node, node)
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error


def _refuse_other_classes(saved: dict[str, Any], path: str) -> None:
    count = len(saved["class_names"])
    bias = saved["model"].get(f"{PREDICTOR}cls_score.bias")
    if bias is not None and bias.shape != (count + 1,):
        raise UserError(f"{path}: names {count} classes, but its weights are for another number")


def _refuse_diverged(model: Detector, path: str) -> None:
    for name, value in (model.state_dict() | model.sites.state_dict()).items():
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} is not finite, so it can detect nothing")
