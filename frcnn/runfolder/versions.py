"""Checkpoints of earlier versions, rewritten as this version saves them."""

from typing import Any

# How the first version called the factors of the four terms.
TERMS = {
    "rpn": {"class": "objectness", "box": "rpn_box_reg"},
    "rcnn": {"class": "classifier", "box": "box_reg"},
}
# How it called the sites where it named thresholds, and which site had `keep_best`.
THRESHOLDS = {"rpn": ("rpn", True), "rcnn": ("box", False)}


def from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had two sites without names; states of losses stood under "losses"."""
    states = {
        f"{loss}.density.{name}": value
        for loss, state in content.pop("losses", {}).items()
        for name, value in state.items()
    }
    config = config_from_version_1(content["config"])
    return content | {"sites": states, "own_optimizers": {}, "config": config}


def config_from_version_1(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with the keys of this version."""
    old = dict(config["model"])
    ignore_ioa = old.pop("ignore_ioa", 0.5)
    assigner: dict[str, dict[str, Any]] = {}
    for site, (name, keep_best) in THRESHOLDS.items():
        assigner[site] = {
            "_target_": "frcnn.sites.assigners.MaxIoU",
            "high": old.pop(f"{name}_fg_iou_thresh"),
            "low": old.pop(f"{name}_bg_iou_thresh"),
            "keep_best": keep_best,
            "ignore_ioa": ignore_ioa,
        }
    model: dict[str, Any] = {"_target_": "frcnn.model.build_detector"}
    model |= {"sites": {"rpn": "rpn", "rcnn": "rcnn"}}
    model |= {"backbone_width": 1, "append_objects": True} | old
    factors = config.get("loss_weight", {})
    loss_weight = {
        site: {part: factors.get(name, 1) for part, name in names.items()}
        for site, names in TERMS.items()
    }
    parts = {"model": model, "assigner": assigner, "weigher": {"rpn": {}, "rcnn": {}}}
    return config | parts | {"loss_weight": loss_weight}
