"""GHM: gradient norms of a trained network's examples, and what losses make of them.

Shape letters: N examples, M bins.
"""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.losses import focal, named_site, value_and_slope
from experiments.figures.seen import Seen
from experiments.style import BLUE, GREY, VERMILLION, named, panels

NUM_BINS = 30
MU = 0.02  # where GHM's box loss bends from squared to absolute errors
SMOOTH_L1_BETA = 1 / 9
# Log axes begin here: bins of an untrained or a perfect network may be empty.
LEAST = 1e-7


def gradients(seen: Mapping[str, Seen]) -> Figure:
    """GHM, fig. 1 to 3: gradient norms of the classification, and their weight in each loss.

    Examples are those of ``losses.focal_loss``.
    """
    figure, axes = panels(3 * len(seen))
    for row, (site, one) in enumerate(seen.items()):
        counts, centres = histogram(1 - one.right.flatten())
        slopes = {
            "cross entropy": value_and_slope(focal(0.0), 1 - centres)[1],
            "focal, γ = 2": value_and_slope(focal(2.0), 1 - centres)[1],
            "GHM-C": centres * harmony(counts),
        }
        norm = "gradient norm g = 1 - p of the label"
        title = named_site(site, one)
        triple(axes[3 * row : 3 * row + 3], title, norm, counts, centres, slopes)
    return figure


def box_gradients(seen: Mapping[str, Seen]) -> Figure:
    """GHM-R: the same for the box errors of the positives."""
    figure, axes = panels(3 * len(seen))
    for row, (site, one) in enumerate(seen.items()):
        error = one.errors.flatten()
        counts, centres = histogram(error.abs() / (error**2 + MU**2).sqrt())
        size = MU * centres / (1 - centres**2).sqrt()
        slopes = {
            "smooth L1, β = 1/9": (size / SMOOTH_L1_BETA).clamp(max=1),
            f"ASL1, μ = {MU:g}": centres,
            "GHM-R": centres * harmony(counts),
        }
        norm = "gradient norm of ASL1, |d| / √(d² + μ²)"
        triple(axes[3 * row : 3 * row + 3], site, norm, counts, centres, slopes)
    return figure


def triple(
    axes: list, site: str, norm: str, counts: Tensor, centres: Tensor, slopes: Mapping[str, Tensor]
) -> None:
    """Three panels over the norm: share of the examples, gradient under each loss, product."""
    share = counts / counts.sum().clamp(min=1)
    axes[0].step(centres, share.clamp(min=LEAST), where="mid", color=GREY)
    for (name, slope), colour in zip(slopes.items(), (GREY, BLUE, VERMILLION), strict=True):
        axes[1].plot(centres, slope.clamp(min=LEAST), color=colour, label=name)
        axes[2].plot(centres, (share * slope).clamp(min=LEAST), color=colour, label=name)
    for one in axes:
        one.set_yscale("log")
    named(axes[0], site, norm, f"share of {int(counts.sum()):,} examples")
    named(axes[1], site, norm, "gradient norm under the loss")
    named(axes[2], site, norm, "share times gradient norm")


def histogram(norms: Tensor) -> tuple[Tensor, Tensor]:
    """[N] norms in [0, 1] -> [M] counts and [M] bin centres."""
    bins = (norms * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    counts = bins.bincount(minlength=NUM_BINS).float()
    return counts, (torch.arange(NUM_BINS) + 0.5) / NUM_BINS


def harmony(counts: Tensor) -> Tensor:
    """[M] counts -> [M] GHM's ``beta = N / (M counts)``; 0 where a bin is empty."""
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 0)
