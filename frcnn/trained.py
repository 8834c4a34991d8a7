"""A detector out of a checkpoint, ready to use."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection._utils import overwrite_eps

from frcnn import checkpoint
from frcnn.assemble import detector
from frcnn.device import choose_device, choose_precision
from frcnn.errors import UserError
from frcnn.model import Detector
from frcnn.model.zoo import load_into

# One name below a module of ours: a longer path could walk through a module's imports to anything.
OWN = re.compile(r"(samplers|frcnn\.(losses|data|data\.transforms|schedules)|torch\.optim)\.\w+")


@dataclass
class Trained:
    """A detector with what its checkpoint says of it."""

    detector: Detector
    config: dict[str, Any]
    class_names: list[str]
    category_ids: list[int | str]
    device: torch.device
    dtype: torch.dtype


def load_trained(path: str, device: str, precision: str) -> Trained:
    """The detector of a checkpoint, in eval mode.

    Raises:
        UserError: no usable checkpoint, or one whose configuration names foreign classes: a file
            must not choose what code runs.
    """
    saved = checkpoint.load(Path(path))
    # Samplers, optimizer and the like are training's, and may be the user's own.
    config = {part: saved["config"][part] for part in ("model", "data", "loss", "box_loss")}
    refuse_foreign_targets(config, path)
    base, start = config["model"]["name"], config["model"]["weights"]
    config["model"] |= {"weights": None, "weights_backbone": None}
    place = choose_device(device)
    model = detector(config, len(saved["class_names"]) + 1)
    load_into(model, saved["model"], path)
    model.load_loss_states(saved.get("losses", {}))
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


def refuse_foreign_targets(node: Any, path: str) -> None:
    """Raise UserError if a nested configuration names a class outside this project."""
    if isinstance(node, dict):
        target = node.get("_target_")
        if "_target_" in node and not OWN.fullmatch(str(target)):
            raise UserError(f"{path}: its configuration names {target}, which is not ours to run")
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            refuse_foreign_targets(value, path)
