"""Is what stays hard wrong? The share of wrong labels among hard examples, by checkpoint.

Shape letters: N candidates of all images.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures.gradients import NUM_BINS
from experiments.figures.look import look
from experiments.figures.seen import Seen
from experiments.style import BLUE, GREEN, GREY, VERMILLION, named, panels
from frcnn.data import DetectionDataset
from frcnn.data.shape_images import ShapeImages
from frcnn.errors import UserError
from frcnn.evaluation.inference import validation_loader
from frcnn.evaluation.load import Trained

COLOURS = {"all": GREY, "random": BLUE, "OHEM": GREEN, "GHM's last bin": VERMILLION}


class Share(NamedTuple):
    """``wrong`` of ``total`` candidates have a wrong label."""

    wrong: int
    total: int

    @property
    def percent(self) -> float:
        """NaN without candidates."""
        return 100 * self.wrong / self.total if self.total else float("nan")


Shares = dict[str, dict[str, Share]]  # by site, and by how candidates were chosen


Runs = Mapping[str, Mapping[int, Shares]]  # by name and training step: of ``look_at_noise``


def wrong_labels(runs: Runs) -> Figure:
    """Percent of wrong labels among candidates over training steps: a panel per run and site.

    A number beside a dot is that of the candidates in GHM's last bin: few say little. The legend
    has the last percent. Sites without any wrong label have no panel.
    """
    sites = dict.fromkeys(site for run in runs.values() for found in run.values() for site in found)
    cells = [
        (name, site)
        for site in reversed(sites)  # the head first
        for name, run in runs.items()
        if any(own.wrong for found in run.values() for own in found.get(site, {}).values())
    ]
    figure, axes = panels(len(cells), columns=3)
    for (name, site), here in zip(cells, axes, strict=True):
        steps = sorted(runs[name])
        for group, colour in COLOURS.items():
            found = [runs[name][step][site][group] for step in steps]
            label = f"{group}: {found[-1].wrong} of {found[-1].total:,}"
            here.plot(steps, [one.percent for one in found], ".-", color=colour, label=label)
            if group == "GHM's last bin":
                for step, one in zip(steps, found, strict=True):
                    if one.total:
                        place = (step, one.percent)
                        here.annotate(f"{one.total:,}", place, fontsize=7, color=colour)
        here.set_ylim(bottom=0)
        named(here, f"{name}: {site}", "training step", "wrong labels in percent")
    return figure


def table(runs: Runs) -> str:
    """The numbers of the figure as CSV: run, site, training step, group, wrong, total."""
    rows = [
        f"{name},{site},{step},{group},{share.wrong},{share.total}"
        for name, run in runs.items()
        for step, found in sorted(run.items())
        for site, groups in found.items()
        for group, share in groups.items()
    ]
    return "\n".join(["run,site,step,group,wrong,total", *rows]) + "\n"


def look_at_noise(
    trained: Trained,
    images: DetectionDataset,
    number: int,
    budget: Mapping[str, int | None],
    batch_size: int,
    workers: int,
) -> Shares:
    """The shares of wrong labels among the candidates of the first ``number`` images.

    Raises:
        UserError: what is wrong with the annotations is not known, or nothing is.
    """
    found = []
    for annotated in (images, corrected(images)):
        annotated.keep(np.arange(len(annotated)) < number)
        found.append(look(trained, validation_loader(annotated, batch_size, workers), budget))
    given, true = found
    return {site: shares(one, wrong(one, true[site])) for site, one in given.items()}


def corrected(images: DetectionDataset) -> DetectionDataset:
    """The same images with their true objects.

    Raises:
        UserError: what is wrong with the annotations is not known, or nothing is.
    """
    load = images.load
    noise = load.noise if isinstance(load, ShapeImages) else None
    if noise is None or not (noise.moved.any() or noise.swapped.any() or len(noise.dropped)):
        raise UserError(
            "wrong_labels: needs training data with known noise: data=shapes with "
            "data.moved_boxes, data.swapped_classes or data.dropped_boxes above 0"
        )
    assert isinstance(load, ShapeImages)
    found = copy.copy(images)
    found.offsets, found.boxes, found.labels, found.ignore, found.areas = load.objects
    return found


def wrong(given: Seen, true: Seen) -> Tensor:
    """[N] bool: the candidate would have another label under the true annotations.

    One that would be ignored under them is not wrong: there it has no label at all.
    """
    keys, true_keys = _keys(given, true)
    at = torch.searchsorted(true_keys, keys).clamp(max=max(0, len(true_keys) - 1))
    if not len(true_keys):
        return torch.zeros_like(given.labels, dtype=torch.bool)
    return (true_keys[at] == keys) & (true.labels[at] != given.labels)


def _keys(given: Seen, true: Seen) -> tuple[Tensor, Tensor]:
    """Ascending numbers, the same for the same candidate."""
    places = [one.place for one in (given, true) if len(one.place)]
    size = max((int(place.max()) for place in places), default=0) + 1
    return given.image * size + given.place, true.image * size + true.place


def shares(one: Seen, is_wrong: Tensor) -> dict[str, Share]:
    """The share of wrong labels among all candidates, samples, and the hardest by GHM.

    GHM's last bin has the candidates with a gradient norm ``1 - p_t`` of 29/30 and more, under a
    loss of C binary problems in any of them.
    """
    hardest = (1 - one.right.float()).amax(1) * NUM_BINS >= NUM_BINS - 1
    groups = {
        "all": torch.ones_like(is_wrong),
        "random": one.picks["random"] > 0,
        "OHEM": one.picks["ohem"] > 0,
        "GHM's last bin": hardest,
    }
    return {
        name: Share(int((is_wrong & group).sum()), int(group.sum()))
        for name, group in groups.items()
    }
