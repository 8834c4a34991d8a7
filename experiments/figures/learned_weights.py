"""The weights that a network has learned for the losses of candidates.

Shape letters: N candidates of all images, P positives among them.
"""

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.seen import SHOWN, Seen
from experiments.style import BLUE, VERMILLION, named, panels

LEAST = 1e-4  # the logarithmic axis of losses begins here; smaller losses lie at its edge


def learned_weights(seen: Mapping[str, Seen]) -> Figure:
    """SWN (arXiv 2006.06568): the weight ``exp(-s)`` of each loss, against the loss and the IoU.

    A row per site, whose ``learned`` is not empty: the weight of class losses against class loss
    and against the IoU of the predicted box, then that of box losses against box loss and IoU.
    Training takes the mean s of a group for class losses; here each candidate has its own.
    """
    figure, axes = panels(4 * len(seen), columns=4)
    for row, (site, one) in enumerate(seen.items()):
        by_loss, by_iou, box_by_loss, box_by_iou = axes[4 * row : 4 * row + 4]
        weight, box_weight = one.learned["class_weight"], one.learned["box_weight"]
        box_loss = (one.loss - one.class_loss)[one.positive]
        for label, kind, colour in (
            ("negatives", ~one.positive, BLUE),
            ("positives", one.positive, VERMILLION),
        ):
            _dots(by_loss, one.class_loss[kind], weight[kind], colour, label)
        _dots(by_iou, one.box_ious, weight[one.positive], VERMILLION)
        _dots(box_by_loss, box_loss, box_weight, VERMILLION)
        _dots(box_by_iou, one.box_ious, box_weight, VERMILLION)
        for here in (by_loss, box_by_loss):
            here.set_xscale("log")
            here.set_xlim(left=LEAST)
        iou = "IoU of the predicted box"
        named(by_loss, f"{site}: class loss", "class loss", "weight of the class loss")
        named(by_iou, f"{site}: class loss", iou, "weight of the class loss")
        named(box_by_loss, f"{site}: box loss", "box loss", "weight of the box loss")
        named(box_by_iou, f"{site}: box loss", iou, "weight of the box loss")
    return figure


def _dots(here: Axes, place: Tensor, weight: Tensor, colour: str, label: str | None = None) -> None:
    """A dot per candidate, of some if there are many."""
    order = torch.randperm(len(place), generator=torch.Generator().manual_seed(0))[:SHOWN]
    dots = place[order].float().clamp(min=LEAST), weight[order].float()
    here.scatter(*dots, s=4, color=colour, linewidths=0, alpha=0.5, label=label)
