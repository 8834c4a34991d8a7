"""What losses do to a trained network's examples, and their curves.

Shape letters: N examples.
"""

import math
from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.seen import Seen
from experiments.style import BLUE, GREEN, GREY, PURPLE, VERMILLION, named, panels
from frcnn.losses import ClassLoss, FocalSigmoid, FocalStar, Samples

GAMMAS = {0.0: GREY, 0.5: BLUE, 1.0: GREEN, 2.0: VERMILLION, 5.0: PURPLE}
HARDEST = 0.2  # the share of the examples that the paper speaks of
ALPHA = 0.5  # of the curves by gamma: half of the loss without alpha
# gamma and beta of FL*; (1, 0) is cross entropy.
STARS = {(1.0, 0.0): GREY, (2.0, 0.0): BLUE, (2.0, 1.0): GREEN, (4.0, 0.0): VERMILLION}
STARS |= {(4.0, 1.0): PURPLE}
POINTS = 2000  # per line; more would not be visible
AT_ONCE = 1 << 18  # examples per piece, 0.6 KB each


def focal_loss(seen: Mapping[str, Seen]) -> Figure:
    """Focal loss, fig. 4, hardest examples first: the share of the loss that they make up.

    The axis is logarithmic, since the hardest hundredth of the anchors has nearly all of the loss.
    The legend has the share of the hardest fifth, which is shaded.
    Under a loss of C binary problems an example is a pair of a candidate and a class, as in GHM.
    """
    figure, axes = panels(2 * len(seen), columns=2)
    for row, (site, one) in enumerate(seen.items()):
        for column, (kind, chosen) in enumerate(
            {"positives": one.yes, "negatives": ~one.yes}.items()
        ):
            here = axes[2 * row + column]
            for gamma, colour in GAMMAS.items():
                share = cumulative(values(focal(gamma), one.right[chosen]))
                number = spread(len(share))
                place = number / len(share)
                label = f"γ = {gamma:g}: {of_hardest(share):.0%}"
                here.plot(place, share[number - 1], color=colour, label=label)
            here.set_xscale("log")
            here.axvspan(here.get_xlim()[0], HARDEST, color=GREY, alpha=0.12, linewidth=0)
            title = f"{named_site(site, one)}: {int(chosen.sum()):,} {kind}"
            named(here, title, "share of the examples, hardest first", "share of the loss")
            legend = here.legend(title=f"hardest {HARDEST:.0%}", frameon=False, fontsize=8)
            legend.get_title().set_fontsize(8)
    return figure


def named_site(site: str, one: Seen) -> str:
    """The site, and whether its examples are candidates or pairs of a candidate and a class."""
    return f"{site}, class by class" if one.right.shape[1] > 1 else site


def values(loss: ClassLoss, right: Tensor) -> Tensor:
    """[N] losses at [N] probabilities of the label."""
    return in_pieces(loss, right)[0]


def in_pieces(loss: ClassLoss, right: Tensor) -> tuple[Tensor, Tensor]:
    """``value_and_slope``, piece by piece: there are millions of anchors."""
    pairs = [value_and_slope(loss, piece) for piece in right.split(AT_ONCE)]
    loss_values, slopes = zip(*pairs, strict=True)
    return torch.cat(loss_values), torch.cat(slopes)


def spread(size: int) -> Tensor:
    """About ``POINTS`` of the numbers 1..size, with both ends, at equal ratios."""
    even = torch.linspace(0, math.log(max(1, size)), POINTS, dtype=torch.float64)
    numbers = even.exp().round().long().unique()
    return numbers[numbers <= size]


def cumulative(loss: Tensor) -> Tensor:
    """[N] losses -> [N] the share of the 1, 2, ... N largest in their sum."""
    total = loss.double().sort(descending=True).values.cumsum(0)
    return total / total[-1:].clamp(min=torch.finfo(total.dtype).tiny)


def of_hardest(share: Tensor) -> float:
    """The share of the loss that the hardest fifth has; of [N], as from ``cumulative``."""
    return share[math.ceil(HARDEST * len(share)) - 1].item() if len(share) else math.nan


def curves() -> Figure:
    """Losses of one positive and their slopes, a row each for three sets.

    Focal loss, fig. 5 and 6: CE, FL and FL*. Then, with alpha, FL for several gamma, and FL* for
    several (gamma, beta).
    """
    paper: dict[str, tuple[ClassLoss, str]] = {
        "CE": (focal(0.0), GREY),
        "FL, γ = 2": (focal(2.0), BLUE),
        "FL*, γ = 2, β = 1": (FocalStar(2.0, 1.0, per=1.0), VERMILLION),
        "FL*, γ = 4, β = 0": (FocalStar(4.0, 0.0, per=1.0), PURPLE),
    }
    by_gamma: dict[str, tuple[ClassLoss, str]] = {
        f"γ = {gamma:g}": (focal(gamma, ALPHA), colour) for gamma, colour in GAMMAS.items()
    }
    by_beta: dict[str, tuple[ClassLoss, str]] = {
        f"γ = {gamma:g}, β = {beta:g}": (FocalStar(gamma, beta, ALPHA, per=1.0), colour)
        for (gamma, beta), colour in STARS.items()
    }
    figure, axes = panels(6, columns=2)
    for row, (name, losses) in enumerate(
        {
            "one binary example": paper,
            f"FL, α = {ALPHA:g}": by_gamma,
            f"FL*, α = {ALPHA:g}": by_beta,
        }.items()
    ):
        _curves(axes[2 * row], axes[2 * row + 1], name, losses)
    return figure


def _curves(
    left: Axes, right: Axes, name: str, losses: Mapping[str, tuple[ClassLoss, str]]
) -> None:
    """Values and slopes over the logit, a line per loss."""
    logit = torch.linspace(-4, 6, 201)
    for label, (loss, colour) in losses.items():
        value, slope = value_and_slope(loss, logit.sigmoid())
        left.plot(logit, value, color=colour, label=label)
        right.plot(logit, -slope, color=colour, label=label)
    where = "logit towards the label, x_t"
    named(left, f"{name}: loss", where, "loss")
    named(right, f"{name}: slope", where, "d loss / d x_t")


def focal(gamma: float, alpha: float | None = None) -> FocalSigmoid:
    """Focal loss; without alpha, as in the paper's curves."""
    return FocalSigmoid(gamma, alpha=alpha, per=1.0)


def value_and_slope(loss: ClassLoss, right: Tensor) -> tuple[Tensor, Tensor]:
    """[N] loss and [N] absolute slope in the logit, at [N] probabilities of the label."""
    logit = right.double().logit(eps=1e-12).requires_grad_()
    none, zero = logit.new_zeros(0, 4), torch.zeros_like(logit)
    found = loss(
        Samples(
            logits=torch.stack([zero, logit], 1),
            labels=torch.ones(len(logit), dtype=torch.int64),
            weights=torch.ones_like(logit),
            positive=torch.zeros(0, dtype=torch.int64),
            deltas=none,
            targets=none,
            objects=none,
            decode=lambda deltas: deltas,
            scores=loss.scores,
        )
    )
    (slope,) = torch.autograd.grad(found.sum(), logit)
    return found.detach().float(), slope.abs().float()
