"""Convert checkpoints of earlier versions to the format of this version."""

from typing import Any

# The names of the four loss factors in version 1.
TERMS = {
    "rpn": {"class": "objectness", "box": "rpn_box_reg"},
    "rcnn": {"class": "classifier", "box": "box_reg"},
}
# The names of the sites in version 1's keys of thresholds, and whether the site had `keep_best`.
THRESHOLDS = {"rpn": ("rpn", True), "rcnn": ("box", False)}


def from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had two fixed sites; the states of losses were under "losses"."""
    states = {
        f"{loss}.density.{name}": value
        for loss, state in content.pop("losses", {}).items()
        for name, value in state.items()
    }
    config = config_from_version_1(content["config"])
    return content | {"sites": states, "own_optimizers": {}, "config": config}


def config_from_version_1(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a configuration of version 1 to the keys of this version."""
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
    model: dict[str, Any] = {"sites": {"rpn": "rpn", "rcnn": "rcnn"}}
    model |= {"backbone_width": 1, "append_objects": True} | old
    model |= {"_target_": "frcnn.model.build_faster_rcnn"}
    factors = config.get("loss_weight", {})
    loss_weight = {
        site: {part: factors.get(name, 1) for part, name in names.items()}
        for site, names in TERMS.items()
    }
    parts = {"model": model, "assigner": assigner, "weigher": {"rpn": {}, "rcnn": {}}}
    return config | parts | {"loss_weight": loss_weight}
