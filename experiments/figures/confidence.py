"""What gamma of focal loss does to examples of middle confidence.

Shape letters: N examples, M bins.
"""

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.losses import GAMMAS, focal, in_pieces, named_site
from experiments.figures.seen import Seen
from experiments.style import GREY, named, panels

NUM_BINS = 10
MIDDLE = slice(3, 7)  # the bins of p_t from 0.3 to 0.7


def confidence(seen: Mapping[str, Seen]) -> Figure:
    """Focal loss (arXiv 1708.02002): the share of loss and gradient by p_t, for several gamma.

    Two rows per site, positives and negatives; shares are of the sum over that kind. The paper's
    gamma 5 is worse than 2: is it because examples of middle confidence count for less? Their
    part is shaded, and the legend has their share. Examples are those of ``losses.focal_loss``,
    their gradient is that in their logit.
    """
    figure, axes = panels(4 * len(seen), columns=2)
    for row, (site, one) in enumerate(seen.items()):
        for kind, chosen in (("positives", one.yes), ("negatives", ~one.yes)):
            first = 4 * row + 2 * (kind == "negatives")
            right = one.right[chosen]
            title = f"{named_site(site, one)}: {len(right):,} {kind}"
            for here, name, found in zip(
                axes[first : first + 2], ("loss", "gradient"), shares(right), strict=True
            ):
                _draw(here, by_bin(right, torch.ones(len(right))), found)
                named(here, title, "score of the right answer, p_t", f"share of the {name}")
                here.legend(
                    title="share of the shaded part", title_fontsize=8, frameon=False, fontsize=8
                )
    return figure


def shares(right: Tensor) -> tuple[dict[float, Tensor], dict[float, Tensor]]:
    """Of [N] p_t: [M] shares of the loss, and of the gradient, by gamma."""
    loss, gradient = {}, {}
    for gamma in GAMMAS:
        values, slopes = in_pieces(focal(gamma), right)
        loss[gamma], gradient[gamma] = by_bin(right, values), by_bin(right, slopes)
    return loss, gradient


def by_bin(right: Tensor, value: Tensor) -> Tensor:
    """[M] shares of the bins of [N] p_t in the sum of [N] values; 0 without any."""
    bins = (right * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    total = torch.zeros(NUM_BINS, dtype=torch.float64).index_add(0, bins, value.double())
    return total / total.sum().clamp(min=torch.finfo(total.dtype).tiny)


def _draw(here: Axes, examples: Tensor, found: Mapping[float, Tensor]) -> None:
    """A line per gamma over the centres of the bins; dashed is the share of the examples."""
    place = (torch.arange(NUM_BINS) + 0.5) / NUM_BINS
    here.axvspan(MIDDLE.start / NUM_BINS, MIDDLE.stop / NUM_BINS, color=GREY, alpha=0.12, lw=0)
    label = f"examples: {examples[MIDDLE].sum():.1%}"
    here.plot(place, examples, "--", color="black", linewidth=0.8, label=label)
    for gamma, colour in GAMMAS.items():
        label = f"γ = {gamma:g}: {found[gamma][MIDDLE].sum():.1%}"
        here.plot(place, found[gamma], ".-", color=colour, label=label)
    here.set_xlim(0, 1)
