"""What samplers take, and what there is to take.

Shape letters: N candidates of all images, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.losses import SITES
from experiments.figures.seen import Seen
from experiments.style import BLUE, GREEN, GREY, VERMILLION, named, panels

COLOURS = {"random": BLUE, "ohem": VERMILLION, "iou_balanced": GREEN}
SHOWN = 4000  # points a panel; more hide each other


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
        named(here, f"{SITES[site]}: negatives", "IoU with the nearest object", "share in percent")
    return figure


def prime_samples(one: Seen) -> Figure:
    """PISA, fig. 4: random, hard and prime samples of the RCNN head by IoU and loss."""
    figure, axes = panels(3, sharex=True, sharey=True)
    order = torch.randperm(len(one.labels), generator=torch.Generator().manual_seed(0))
    titles = {"random": "random", "ohem": "hard (OHEM)", "pisa": "prime (PISA, size = weight)"}
    for (name, title), here in zip(titles.items(), axes, strict=True):
        weight = one.picks[name]
        for kind, colour in ((~one.positive, BLUE), (one.positive, VERMILLION)):
            passed, taken = (order[(kind & w)[order]][:SHOWN] for w in (weight == 0, weight > 0))
            here.scatter(one.ious[passed], one.loss[passed], s=2, color="#CCCCCC", linewidths=0)
            size = 8 * weight[taken].clamp(max=4)
            label = "positives" if colour == VERMILLION else "negatives"
            here.scatter(
                one.ious[taken], one.loss[taken], s=size, color=colour, linewidths=0, label=label
            )
        named(here, title, "IoU with the nearest object", "class and box loss")
    return figure


def counts(seen: Mapping[str, Seen], images: int) -> Figure:
    """Positives and negatives by level and by image, at both sites.

    Args:
        images: how many were looked at; the last ones may have no candidates.
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
        named(by_level, SITES[site], "pyramid level, 0 the finest", "candidates an image")
        named(by_image, SITES[site], "images in percent, most first", "candidates")
    return figure


def total(numbers: Tensor) -> int:
    """How many there are of what is numbered from 0; 0 where an RPN has proposed nothing."""
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
