"""The candidates of each site, and what samplers take of them.

Shape letters: C classes.
"""

from collections.abc import Mapping, Sequence
from math import nan

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.seen import Seen
from experiments.style import BLUE, GREEN, GREY, VERMILLION, named, panels

COLOURS = {"random": BLUE, "ohem": VERMILLION, "iou_balanced": GREEN}
IOU_BIN = 0.05


def negative_ious(seen: Mapping[str, Seen]) -> Figure:
    """Libra R-CNN, fig. 3: IoU of the negatives that samplers take."""
    figure, axes = panels(len(seen))
    for (site, one), here in zip(seen.items(), axes, strict=True):
        ious = one.ious[~one.positive]
        edges = torch.linspace(0, max(0.1, ious.max().item() if len(ious) else 0), 16)
        for name, colour in (("all", GREY), *COLOURS.items()):
            taken = one.picks[name][~one.positive] > 0 if name != "all" else ious >= 0
            counts = torch.histogram(ious[taken].float(), edges).hist
            share = 100 * counts / counts.sum().clamp(min=1)
            here.stairs(share, edges, color=colour, linewidth=1.5, label=name)
        here.set_yscale("symlog", linthresh=1)
        named(here, f"{site}: negatives", "IoU with the nearest object", "share in percent")
    return figure


def negatives_by_iou(seen: Mapping[str, Seen]) -> Figure:
    """Libra R-CNN (arXiv 1904.02701): are negatives of high IoU harder? A row per site.

    Number, class loss and score of the negatives in bins of their IoU with the nearest object. The
    score is the highest of an object class.
    """
    figure, axes = panels(3 * len(seen))
    for row, (site, one) in enumerate(seen.items()):
        number, loss, score = axes[3 * row : 3 * row + 3]
        negative = ~one.positive
        bins = (one.ious[negative].float() / IOU_BIN).long()
        size = total(bins)
        place = (torch.arange(size) + 0.5) * IOU_BIN
        number.bar(
            place.tolist(), bins.bincount(minlength=size).tolist(), 0.8 * IOU_BIN, color=GREY
        )
        number.set_yscale("log")
        number.set_ylim(bottom=0.5)  # below 1, or a bin of one negative would look empty
        for here, values in ((loss, one.loss[negative]), (score, one.object_score[negative])):
            groups = [values[bins == number].float() for number in range(size)]
            here.plot(
                place, [group.mean().item() for group in groups], ".-", color=BLUE, label="mean"
            )
            median = [group.median().item() if len(group) else nan for group in groups]
            here.plot(place, median, ".--", color=VERMILLION, label="median")
            here.set_yscale("log")
        title, where = f"{site}: {len(bins):,} negatives", "IoU with the nearest object"
        named(number, title, where, "negatives")
        named(loss, title, where, "class loss")
        named(score, title, where, "highest score of a class")
    return figure


def counts(seen: Mapping[str, Seen], images: int) -> Figure:
    """Positives and negatives by level and by image, at each site.

    Args:
        images: their number; the last ones may have no candidates.
    """
    figure, axes = panels(2 * len(seen), columns=2)
    for row, (site, one) in enumerate(seen.items()):
        by_level, by_image = axes[2 * row : 2 * row + 2]
        levels = total(one.level)
        for shift, (name, kind, colour) in enumerate(
            (("positives", one.positive, VERMILLION), ("negatives", ~one.positive, BLUE))
        ):
            level = (one.level[kind].bincount(minlength=levels) / images).tolist()
            place = [number + 0.4 * shift - 0.2 for number in range(levels)]
            by_level.bar(place, level, 0.4, color=colour, label=name)
            image = one.image[kind].bincount(minlength=images).sort(descending=True).values
            by_image.plot(torch.linspace(0, 100, images), image, color=colour, label=name)
        for here in (by_level, by_image):
            here.set_yscale("symlog", linthresh=1)
        by_level.set_xticks(range(levels))
        named(by_level, site, "pyramid level, 0 the finest", "candidates per image")
        named(by_image, site, "images in percent, most first", "candidates")
    return figure


def total(numbers: Tensor) -> int:
    """How many numbers from 0 there are; 0 if an RPN has proposed nothing."""
    return int(numbers.max()) + 1 if len(numbers) else 0


def classes(names: Sequence[str], numbers: Sequence[int]) -> Figure:
    """How many objects of each class the training split has, [C], most first."""
    order = sorted(range(len(names)), key=lambda row: -numbers[row])
    figure, (axes,) = panels(1)
    figure.set_size_inches(6, 1 + 0.25 * len(names))
    axes.barh([names[row] for row in order], [numbers[row] for row in order], color=BLUE)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=0.5)  # below 1, or a class of one object would look empty
    named(axes, f"training split: {sum(numbers):,} objects", "objects of the class")
    return figure
