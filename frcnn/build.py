"""Parts of a run from their configuration nodes."""

from typing import Any

import torch
from torch import Tensor

from frcnn.config.compose import build
from frcnn.data import DetectionDataset, drop_misfits
from frcnn.errors import ConfigError
from frcnn.model import Detector, build_detector
from frcnn.sites.assigners import MaxIoU

# Said in the data's file, since they suit the data, and used by the model.
VIEW = ("min_size", "max_size", "anchor_sizes")


def dataset(node: dict[str, Any], split: str) -> DetectionDataset:
    """The "train" or "val" split of a data node, with the images that can be used."""
    found = annotated(node, split)
    drop_misfits(found, split)
    return found


def annotated(node: dict[str, Any], split: str) -> DetectionDataset:
    """The same as its annotations have it, no image opened."""
    reader = build({key: value for key, value in node.items() if key not in VIEW})
    return reader(split=split)


def detector(config: dict[str, Any], num_classes: int) -> Detector:
    """The detector of a configuration, with its samplers if it has any; C + 1 classes."""
    model = dict(config["model"])
    sizes = model["min_size"]
    # torchvision draws from a sequence but fails on a list.
    model["min_size"] = tuple(sizes) if isinstance(sizes, list) else sizes
    high_low = {
        s: (model.pop(f"{k}_fg_iou_thresh"), model.pop(f"{k}_bg_iou_thresh"))
        for s, k in (("rpn", "rpn"), ("rcnn", "box"))
    }
    ioa = model.pop("ignore_ioa")
    assigner = {s: MaxIoU(*hl, keep_best=s == "rpn", ignore_ioa=ioa) for s, hl in high_low.items()}
    groups = {
        group: {site: build(node) for site, node in config[group].items()}
        for group in ("sampler", "loss", "box_loss")
        if group in config
    }
    w = config.get(
        "loss_weight", dict.fromkeys(("objectness", "rpn_box_reg", "classifier", "box_reg"), 1)
    )
    weight = {
        "rpn": {"class": w["objectness"], "box": w["rpn_box_reg"]},
        "rcnn": {"class": w["classifier"], "box": w["box_reg"]},
    }
    for group, parts in groups.items():
        if group != "sampler":
            for site in [name for name in assigner if name not in parts]:
                raise ConfigError(f"{group}: no part for the site {site}")
    return build_detector(num_classes, **model, assigner=assigner, loss_weight=weight, **groups)


def fill_from_data(losses: dict[str, dict[str, Any]], train_set: DetectionDataset) -> None:
    """Write the training set's numbers where a loss node, by site, says "data".

    ``class_counts`` are the objects of each class (the RPN has one class, "object");
    ``class_frequencies`` the shares of images that show it. With the numbers in its configuration
    a checkpoint's detector can be built without the data.
    """
    counts = train_set.class_frequencies().tolist()
    numbers = {
        "rpn": {"class_counts": [sum(counts)]},
        "rcnn": {"class_counts": counts, "class_frequencies": train_set.image_shares().tolist()},
    }
    for site, node in losses.items():
        node |= {key: value for key, value in numbers[site].items() if node.get(key) == "data"}


def prepare(images: list[Tensor], device: torch.device) -> list[Tensor]:
    """uint8 images -> float in 0..1 on the device.

    Targets stay where they are: the detector takes along what it needs, and what is done with
    boxes before that would make a GPU's host wait.
    """
    return [image.to(device, non_blocking=True).float().div_(255) for image in images]
