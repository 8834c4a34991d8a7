"""Random, hard and prime samples of each image (PISA, arXiv 1904.04821, fig. 4).

Shape letters: P positives of all images.
"""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.seen import SHOWN, Seen
from experiments.style import BLUE, GREEN, VERMILLION, named, panels
from samplers.quota import rank_within

PER_IMAGE = 3
COLOURS = {"random": BLUE, "hard": VERMILLION, "prime": GREEN}


def prime_samples(seen: Mapping[str, Seen]) -> Figure:
    """Three positives per image of each kind, by IoU of the predicted box and class loss.

    A row per site. Grey are the other positives. IoU-HLR ranks positives alone, so that all kinds
    are taken among these. The legend has the number of the samples and their means.
    """
    kinds = len(COLOURS)
    figure, axes = panels(kinds * len(seen), columns=kinds, sharex=True, sharey="row")
    for row, (site, one) in enumerate(seen.items()):
        loss, ious = one.class_loss[one.positive].float(), one.box_ious.float()
        some = torch.randperm(len(loss), generator=torch.Generator().manual_seed(0))[:SHOWN]
        taken = first_three(one)
        for here, (kind, colour) in zip(axes[kinds * row :], COLOURS.items(), strict=False):
            x, y = ious[taken[kind]], loss[taken[kind]]
            label = f"{len(x):,}: IoU {x.mean():.2f}, loss {y.mean():.2f}" if len(x) else "none"
            here.scatter(ious[some], loss[some], s=2, color="#CCCCCC", linewidths=0)
            here.scatter(x[:SHOWN], y[:SHOWN], s=8, color=colour, linewidths=0, label=label)
            named(here, f"{site}: {kind}", "IoU of the predicted box", "class loss")
    return figure


def first_three(one: Seen) -> dict[str, Tensor]:
    """[P] bool by kind: the first of each image at random, by class loss, and by IoU-HLR."""
    image = one.image[one.positive]
    images = int(image.max()) + 1 if len(image) else 0
    every = torch.ones_like(image, dtype=torch.bool)

    def highest(priority: Tensor) -> Tensor:
        return rank_within(image, priority, images, every) < PER_IMAGE

    noise = torch.rand(len(image), generator=torch.Generator().manual_seed(0))
    hard = highest(one.class_loss[one.positive])
    return {"random": highest(noise), "hard": hard, "prime": one.hlr < PER_IMAGE}
