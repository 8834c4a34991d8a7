"""Are easy examples lost again? Two checkpoints of one run, over the same candidates."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection.rpn import RegionProposalNetwork

from experiments.figures.look import look
from experiments.figures.quadrants import EASY, percent
from experiments.figures.seen import Seen
from experiments.style import BLUE, VERMILLION, named, panels
from frcnn.errors import UserError
from frcnn.evaluation.load import Trained
from frcnn.model import Detector

Pair = tuple[dict[str, Seen], dict[str, Seen]]


def forgetting(runs: Mapping[str, Pair]) -> Figure:
    """Of the examples that were easy, the share that is hard later: a panel per site.

    Focal loss gives easy examples little weight, so nothing keeps them easy. The text of a bar has
    the share and the number of the examples that were easy.

    Args:
        runs: by name, what an earlier and a later checkpoint of a run say of the same candidates.
    """
    sites = list(dict.fromkeys(site for earlier, _ in runs.values() for site in earlier))
    figure, axes = panels(len(sites), columns=2)
    figure.set_figwidth(0.6 + 4.4 * min(2, len(sites)))
    for site, here in zip(sites, axes, strict=True):
        pairs = {n: (a[site], b[site]) for n, (a, b) in runs.items() if site in a}
        for shift, kind, colour in ((-0.2, "positives", VERMILLION), (0.2, "negatives", BLUE)):
            lost = [forgotten(*pair, positives=kind == "positives") for pair in pairs.values()]
            places = [row + shift for row in range(len(lost))]
            shares = [100 * share for share, _ in lost]
            here.barh(places, shares, 0.38, color=colour, label=kind)
            for place, share, (_, easy) in zip(places, shares, lost, strict=True):
                text = f" {percent(share / 100)} % of {easy:,}" if easy else " none was easy"
                here.text(share, place, text, va="center", fontsize=8)
        here.set_yticks(range(len(pairs)), pairs)
        here.invert_yaxis()
        here.set_xlim(0, 1.5 * max(1.0, here.dataLim.x1))  # room for the text
        named(here, site, "share of the easy that became hard, in percent")
    return figure


def forgotten(earlier: Seen, later: Seen, *, positives: bool) -> tuple[float, int]:
    """The share of the easy examples that is hard later, 0 without any, and their number."""
    easy = (earlier.right > EASY) & (earlier.yes == positives)
    hard = later.right <= EASY
    number = int(easy.sum())
    return int((easy & hard).sum()) / max(1, number), number


def look_twice(
    earlier: Trained, later: Trained, loader: DataLoader, budget: Mapping[str, int | None]
) -> Pair:
    """What two checkpoints of a run see; the later one judges the proposals of the earlier one.

    Raises:
        UserError: their candidates differ.
    """
    proposals: list[list[Tensor]] = []

    def record(_: Any, __: Any, output: tuple[list[Tensor], Any]) -> None:
        proposals.append(output[0])

    with hooked(earlier.detector, record):
        before = look(earlier, loader, budget)
    kept = iter(proposals)

    def replay(_: Any, __: Any, output: tuple[list[Tensor], Any]) -> tuple[list[Tensor], Any]:
        return next(kept), output[1]

    with hooked(later.detector, replay):
        after = look(later, loader, budget)
    for site, one in before.items():
        if not torch.equal(one.labels, after[site].labels):
            raise UserError(f"forgetting: the checkpoints have other examples at the site {site}")
    return before, after


@contextmanager
def hooked(detector: Detector, hook: Callable[..., Any]) -> Iterator[None]:
    """Call ``hook`` after the RPN of the detector, if it has one."""
    networks = [m for m in detector.modules() if isinstance(m, RegionProposalNetwork)]
    handles = [network.register_forward_hook(hook) for network in networks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
