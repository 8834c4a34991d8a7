"""A detector out of a checkpoint, ready to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from frcnn import checkpoint
from frcnn.assemble import detector
from frcnn.device import choose_device, choose_precision
from frcnn.errors import UserError
from frcnn.model import Detector

OWN_PACKAGES = ("frcnn.", "samplers.")


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
    config = saved["config"]
    refuse_foreign_targets(config, path)
    config["model"] |= {"weights": None, "weights_backbone": None}
    place = choose_device(device)
    model = detector(config, len(saved["class_names"]) + 1)
    model.load_state_dict(saved["model"])
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
    if not isinstance(node, dict):
        return
    target = node.get("_target_", OWN_PACKAGES[0])
    if not str(target).startswith((*OWN_PACKAGES, "torch.optim.")):
        raise UserError(f"{path}: its configuration names {target}, which is not of this project")
    for value in node.values():
        refuse_foreign_targets(value, path)
