"""Load a trained detector from a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection._utils import overwrite_eps

from frcnn import losses
from frcnn.build import dataset, detector
from frcnn.config.checks import check_schema, check_target
from frcnn.config.compose import target_of
from frcnn.config.schema import Trainer
from frcnn.data import DetectionDataset
from frcnn.errors import ConfigError, UserError
from frcnn.model import Detector
from frcnn.model.backbones import zero_epsilon
from frcnn.model.weights import load_into
from frcnn.parallel.device import choose_device, choose_precision
from frcnn.runfolder import checkpoint
from frcnn.sites import assigners, weighers

# The classes and functions that a checkpoint's configuration may name. This is an allow list: these
# are enough to build a detector and its data set.
TRUSTED = {
    f"{package.__name__}.{name}"
    for package in (losses, assigners, weighers)
    for name in package.__all__
}
BUILDERS = ("detector", "faster_rcnn", "retinanet", "cascade_rcnn")
READERS = ("coco", "coco2017", "lvis", "roboflow", "shapes", "voc", "yolo")
TRUSTED |= {f"frcnn.data.{reader}" for reader in READERS}
TRUSTED |= {f"frcnn.model.build_{name}" for name in BUILDERS}
CONFIG_NODES = ("model", "data", "assigner", "loss", "box_loss", "weigher")
# Of the node "trainer" with what earlier versions did: detections depend on these in the last bits.
# An image's batch pads it.
OF_TRAINER = {"precision": "auto", "batch_size": 4, "channels_last": False}
HYDRA_KEYS = ("_target_", "_partial_")
MAX_VALUES = 100_000


@dataclass
class Trained:
    """A detector and the contents of its checkpoint that inference needs.

    ``config`` has the nodes named in ``CONFIG_NODES``. Label k is ``class_names[k - 1]``, with the
    id ``category_ids[k - 1]`` in the original data. ``device`` and ``dtype`` are those to run with,
    ``batch_size`` and ``max_detections`` those of the run, ``class_images`` the training images of
    each class, and ``budgets`` the examples per image of each site; both are empty in checkpoints
    of earlier versions.
    """

    detector: Detector
    config: dict[str, Any]
    class_names: list[str]
    category_ids: list[int | str]
    device: torch.device
    dtype: torch.dtype
    batch_size: int = 1
    class_images: list[int] = field(default_factory=list)
    max_detections: int | None = None
    budgets: dict[str, int] = field(default_factory=dict)


def load_trained(path: str, device: str, precision: str, trust: Sequence[str] = ()) -> Trained:
    """The detector of a checkpoint, in eval mode.

    Args:
        device, precision: as in the configuration: "auto", "cpu", ...; "auto", "fp32", ...
            Precision "run" is what the run's own configuration says.
        trust: packages whose code the checkpoint may name, in addition to this project's.

    Raises:
        UserError: the checkpoint cannot be used, its weights are not finite, or its configuration
            names code of a package that is not trusted. A file must not choose which code runs.
    """
    saved = checkpoint.load(Path(path))
    chosen_device = choose_device(device)
    with checkpoint.as_user_error(path):
        # Only training needs the other parts, such as samplers. They may be the user's own code.
        config = {part: saved["config"][part] for part in CONFIG_NODES}
        refuse_untrusted(config, path, trust)
        _check_values("model", config["model"], path)
        name, initial_weights = config["model"].get("name"), config["model"].get("weights")
        # The checkpoint has all weights: load no initial ones.
        config["model"] |= dict.fromkeys({"weights", "weights_backbone"} & config["model"].keys())
        model = detector(config, len(saved["class_names"]) + 1)
        _refuse_other_classes(model, saved, path)
        load_into(model, saved["model"], model.predictor, path)
        model.sites.load_state_dict(saved["sites"])
        class_images = _class_images(saved)
        limit = saved["config"].get("evaluation", {}).get("max_detections")
        budgets = _budgets(saved)
        saved_trainer = saved["config"].get("trainer", {})
        trainer = {key: saved_trainer.get(key, usual) for key, usual in OF_TRAINER.items()}
    _check_trainer(trainer, path)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UserError(f"{path}: evaluation.max_detections is {limit!r}, not a number above 0")
    _refuse_not_finite(model, path)
    if zero_epsilon(name, initial_weights):
        overwrite_eps(model, 0.0)
    model.to(chosen_device).eval()
    if trainer["channels_last"]:
        # As in the run: another memory format rounds otherwise, and AP would differ a little.
        model.to(memory_format=torch.channels_last)
    return Trained(
        model,
        config,
        saved["class_names"],
        saved["category_ids"],
        chosen_device,
        choose_precision(trainer["precision"] if precision == "run" else precision, chosen_device),
        trainer["batch_size"],
        class_images,
        limit,
        budgets,
    )


def _budgets(saved: Mapping[str, Any]) -> dict[str, int]:
    budgets = {name: own["budget"] for name, own in saved["config"].get("site", {}).items()}
    if not all(type(budget) is int and budget > 0 for budget in budgets.values()):
        raise ValueError("a 'budget' is not a number above 0")
    return budgets


def _class_images(saved: Mapping[str, Any]) -> list[int]:
    counts = saved.get("class_images", [])
    if counts and len(counts) != len(saved["class_names"]):
        raise ValueError("'class_images' are not one count per class")
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("'class_images' are no counts")
    return counts


def checkpoint_data(
    trained: Trained, path: str, split: str, root: str | None = None
) -> DetectionDataset:
    """A split of the data set that the detector was trained with.

    Args:
        path: the checkpoint's, for messages.
        root: the folder where the data lies now; None = where it was.

    Raises:
        UserError: the data cannot be read, or has no folder that could have moved.
    """
    with checkpoint.as_user_error(path):
        node = trained.config["data"]
        _check_values("data", node, path)
        if root is not None and "root" not in node:
            raise ConfigError(f"data_root={root}: the data of {path} has no data.root")
        return dataset(node if root is None else node | {"root": root}, split)


def chosen_data(trained: Trained, config: dict[str, Any], split: str) -> DetectionDataset:
    """A split of the data set that the command line names, or else of the detector's own.

    Args:
        config: the command's configuration. "data" is a data node or None; "checkpoint" is the
            path of the detector; "data_root", which a command may lack, is that of its own data.

    Raises:
        UserError: the data cannot be read, or its classes are not those of the detector.
    """
    moved = config.get("data_root")
    if config.get("data"):
        if moved is not None:
            raise ConfigError("data_root: with data=, say data.root")
        images = dataset(config["data"], split)
    else:
        images = checkpoint_data(trained, config["checkpoint"], split, moved)
    if list(images.class_names) != trained.class_names:
        raise UserError(
            f"the data has the classes {', '.join(images.class_names)}, "
            f"the checkpoint {', '.join(trained.class_names)}"
        )
    return images


def refuse_untrusted(config: dict[str, Any], path: str, trust: Sequence[str] = ()) -> None:
    """Refuse a configuration that could make Hydra run foreign code or look up a value.

    A configuration may hold plain values, lists, and dicts with string keys. A ``_target_`` must be
    in ``TRUSTED`` or in a package of ``trust``. A string must not hold an interpolation (``${``):
    it could create a node or read the environment. The number of values is limited, because a list
    in a pickle can contain itself, or other lists a billion times.

    Raises:
        UserError: the configuration holds something else; the message names it.
    """
    unchecked: list[Any] = [config]
    for _ in range(MAX_VALUES):
        if not unchecked:
            return
        value = unchecked.pop()
        if isinstance(value, dict):
            _refuse_keys(value, path, trust)
            unchecked += value.values()
        elif isinstance(value, list):
            unchecked += value
        elif isinstance(value, str) and "${" in value:
            raise UserError(
                f"{path}: its configuration holds {value!r}, which is not a plain value"
            )
        elif not isinstance(value, str | int | float | None):
            raise UserError(f"{path}: its configuration holds a {type(value).__name__}")
    raise UserError(f"{path}: its configuration holds more than {MAX_VALUES} values")


def _refuse_keys(node: dict[Any, Any], path: str, trust: Sequence[str]) -> None:
    for key in node:
        if not isinstance(key, str) or (key.startswith("_") and key not in HYDRA_KEYS):
            raise UserError(f"{path}: its configuration has the key {key!r}, which is not allowed")
    if "_target_" not in node:
        return
    target = str(node["_target_"])
    package = target.partition(".")[0]
    if target not in TRUSTED and package not in trust:
        hint = "" if package in ("frcnn", "samplers") else f"; trust=[{package}] runs it"
        raise UserError(
            f"{path}: its configuration names {target}, which is not this project's code{hint}"
        )


def _check_values(part: str, node: dict[str, Any], path: str) -> None:
    """Check values as those of a command line: a wrong one may fail only at the first image."""
    try:
        check_target(part, target_of(part, node), node, node)
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error


def _check_trainer(node: dict[str, Any], path: str) -> None:
    try:
        check_schema(node, Trainer, node, "trainer.")
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error


def _refuse_other_classes(model: Detector, saved: dict[str, Any], path: str) -> None:
    own, given = model.state_dict(), saved["model"]
    parts = [name for name in own if name.startswith(model.predictor) and name in given]
    if any(own[name].shape != given[name].shape for name in parts):
        count = len(saved["class_names"])
        raise UserError(f"{path}: names {count} classes, but its weights are for another number")


def _refuse_not_finite(model: Detector, path: str) -> None:
    for name, value in (model.state_dict() | model.sites.state_dict()).items():
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} is not finite, so the detector cannot be used")
