"""A Faster R-CNN with a second RCNN head, which has a site and a budget of its own."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from frcnn.model import Detector, build_detector
from frcnn.model.sites import add_sites, make_site, parts_by_site, prepare_loss, refer_to_site

SITES = {"rpn": "rpn", "rcnn": "rcnn", "second": "rcnn"}
GROUPS = ("assigner", "sampler", "loss", "box_loss", "weigher", "loss_weight")


class TwoHeads(nn.Module):
    """Both heads learn from the same proposals; the second one detects."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, *arguments: Any) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        _, losses = self.first(*arguments)
        found, more = self.second(*arguments)
        return found, losses | more


def three_sites(num_classes: int, **options: Any) -> Detector:
    """``build_detector`` with a third site, ``second``."""
    parts: dict[str, Mapping[str, Any]] = {g: options.pop(g, {}) for g in GROUPS}
    usual = {g: {s: part for s, part in p.items() if s != "second"} for g, p in parts.items()}
    model = build_detector(num_classes, **usual, **options)
    second = copy.deepcopy(model.roi_heads)
    own = parts_by_site(SITES, parts)["second"]
    site = make_site("second", "rcnn", second.box_coder, own)
    add_sites(model, {**model.sites, "second": site})
    refer_to_site(second, site)
    bias = prepare_loss("second", own["loss"], num_classes)
    if bias is not None:
        second.box_predictor.cls_score.bias.data.copy_(bias)
    model.roi_heads = TwoHeads(model.roi_heads, second)
    # What depends on the number of classes, for checkpoints of other classes.
    model.predictor = ("roi_heads.first.box_predictor.", "roi_heads.second.box_predictor.")
    return model
