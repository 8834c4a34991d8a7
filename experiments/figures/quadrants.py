"""Positive or negative, hard or easy: what each quarter has of the examples, loss and gradient.

Shape letters: N candidates, B binary problems per candidate.
"""

from collections.abc import Mapping
from itertools import product

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.losses import focal, in_pieces, named_site
from experiments.figures.seen import Seen
from experiments.style import STYLE
from frcnn.losses.focal import alpha_t

EASY = 0.5  # an example is easy if the score of the right answer is above this
# In the order of attention that focal loss is meant to give.
QUARTERS = ("hard positives", "hard negatives", "easy positives", "easy negatives")
DARK = 0.4  # from this share on the cell is so dark that its text is white


def quadrants(seen: Mapping[str, Seen], alpha: float, gamma: float) -> Figure:
    """Focal loss (arXiv 1708.02002): the shares of the four quarters, a table per site.

    Loss and gradient are those of cross entropy, then with alpha, with gamma, and with both. An
    example is that of ``losses.focal_loss``, and its gradient is that in its logit.
    """
    figure = Figure(figsize=(7.0, 0.2 + 3.1 * len(seen)), layout="constrained")
    axes = figure.subplots(len(seen), 1, squeeze=False).ravel()
    for (site, one), here in zip(seen.items(), axes, strict=True):
        rows = shares(one, alpha, gamma)
        table = torch.stack(list(rows.values()))
        here.imshow(table.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in product(range(len(rows)), range(len(QUARTERS))):
            share = table[row, column].item()
            colour = "white" if share > DARK else "black"
            here.text(column, row, percent(share), ha="center", va="center", color=colour, **STYLE)
        here.set_xticks(range(len(QUARTERS)), QUARTERS, **STYLE)
        here.set_yticks(range(len(rows)), rows, **STYLE)
        here.tick_params(length=0, top=False)
        here.spines[:].set_visible(False)
        here.set_title(f"{named_site(site, one)}: share in percent, easy = p_t > {EASY:g}", **STYLE)
    return figure


def shares(one: Seen, alpha: float, gamma: float) -> dict[str, Tensor]:
    """[4] shares of the ``QUARTERS`` by name: of the examples, and of each loss and gradient."""
    right, yes = one.right.flatten(), one.yes.flatten()
    quarter = (~yes).long() + 2 * (right > EASY).long()
    rows = {"examples": share(quarter, torch.ones(len(quarter)))}
    balance = alpha_t(yes.float(), alpha)
    plain, focused = in_pieces(focal(0.0), right), in_pieces(focal(gamma), right)
    for kind, name in enumerate(("loss", "gradient")):
        weighted = {
            "cross entropy": plain[kind],
            f"α = {alpha:g}": balance * plain[kind],
            f"γ = {gamma:g}": focused[kind],
            f"α = {alpha:g}, γ = {gamma:g}": balance * focused[kind],
        }
        rows |= {f"{name}, {label}": share(quarter, value) for label, value in weighted.items()}
    return rows


def share(quarter: Tensor, value: Tensor) -> Tensor:
    """[4] shares of the quarters in the sum of [N B] values; 0 without any."""
    total = torch.zeros(len(QUARTERS), dtype=torch.float64).index_add(0, quarter, value.double())
    return total / total.sum().clamp(min=torch.finfo(total.dtype).tiny)


def percent(share: float) -> str:
    """Two digits at least, so that rare examples do not read as none.

    >>> percent(0.0), percent(0.000123), percent(0.345), percent(0.99995)
    ('0', '0.012', '34.5', '100.0')
    """
    number = 100 * share
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"
