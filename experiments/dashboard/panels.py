"""What the dashboard shows, section by section, in the names that a run logs."""

from collections.abc import Sequence
from typing import NamedTuple

AXES = {"train": "step", "sampling": "step", "val": "epoch"}
METHOD = "method"  # the W&B column that runs are grouped by


class Section(NamedTuple):
    """Panels under one heading.

    Args:
        title: the heading.
        reading: how to read the panels, in plain words.
        curves: metrics over the axis of their kind: mean and standard deviation by method.
        bars: summary values, likewise.
        table: name of a table.
        pictures: names of logged images.
    """

    title: str
    reading: str
    curves: tuple[str, ...] = ()
    bars: tuple[str, ...] = ()
    table: str = ""
    pictures: tuple[str, ...] = ()


def sections(sites: Sequence[str], terms: Sequence[str]) -> list[Section]:
    """All sections, for runs with these sites and loss terms."""
    return [*RESULTS, losses(terms), *map(picks, sites), *map(predictions, sites), *OTHERS]


RESULTS = (
    Section(
        "Validation AP by epoch",
        "A line is the mean over a method's seeds, its band one standard deviation. All AP are "
        "fractions of 1. Where bands overlap, these seeds show no difference: python -m "
        "experiments.report compares the methods by seed, with intervals and p-values.",
        curves=("val/AP", "val/AP50", "val/AP75"),
    ),
    Section(
        "Best and last AP",
        "best/AP is the highest of all validations. It is always a little too high, more so where "
        "validation was frequent. last/AP is the AP of the last weights. The other values are of "
        "the last validation: at IoU 0.5 and 0.75, by size of the objects (none where there are no "
        "such objects), and recall with 100 detections per image.",
        bars=(
            "best/AP",
            "last/AP",
            "last/AP50",
            "last/AP75",
            "last/APs",
            "last/APm",
            "last/APl",
            "last/AR100",
        ),
    ),
    Section(
        "AP by class",
        "Of the last validation, one table per run. A method may gain on a rare class what it "
        "loses on a frequent one.",
        table="val/per_class",
    ),
)
OTHERS = (
    Section(
        "Cost",
        "Seconds per run, with validation, and seconds per step. Compare only runs of one machine "
        "that did nothing else. train/data_wait is the share of the time spent waiting for images.",
        curves=("train/seconds_per_step", "train/images_per_second", "train/data_wait"),
        bars=("last/seconds",),
    ),
    Section(
        "Pictures",
        "Validation images with true and predicted boxes. Both can be hidden, predictions also by "
        "score.",
        pictures=("val/pictures",),
    ),
)


def losses(terms: Sequence[str]) -> Section:
    """The losses, with these terms."""
    return Section(
        "Losses",
        "val/loss is over randomly drawn examples whatever the sampler, so it compares runs. The "
        "training losses do not: a sampler that picks hard examples has a high loss by design.",
        curves=("val/loss", "train/loss", *(f"train/{term}" for term in terms)),
    )


def picks(site: str) -> Section:
    """What the sampler of a site takes."""
    what = (
        "positives_per_image",
        "negatives_per_image",
        "candidates_positive_per_image",
        "effective_sample_size",
        "positive_iou",
        "negative_iou",
        "loss_picked",
        "loss_passed",
        "hard_fraction",
        "objects_covered",
    )
    return Section(
        f"What the sampler of {site} picks",
        "loss_picked far above loss_passed and hard_fraction near 1: the sampler takes the hardest "
        "candidates. The two close together: the choice does not depend on the loss. "
        "effective_sample_size is the number of equally weighted examples that would average as "
        "well. objects_covered is the share of the objects with a positive that got one. Methods "
        "that leave a site to random sampling coincide here.",
        curves=tuple(f"sampling/{site}/{name}" for name in what),
    )


def predictions(site: str) -> Section:
    """How well the scores of a site tell its candidates apart."""
    what = ("accuracy_positive", "accuracy_negative", "score_iou_correlation", "best_is_best")
    return Section(
        f"What {site} predicts",
        "The accuracies are those of a classifier, over the sampled positives and negatives; they "
        "depend on the sampler. A detector also needs the best box of each object to have the "
        "highest score: score_iou_correlation is Spearman's, of score and IoU of the predicted "
        "boxes over the positives; best_is_best is the share of the objects whose best-scored box "
        "is their best-placed box.",
        curves=tuple(f"sampling/{site}/{name}" for name in what),
    )


def figures(names: Sequence[str]) -> Section:
    """The figures of ``experiments.report`` or ``experiments.figures``, logged as images."""
    return Section("Figures", "Drawn from the same runs.", pictures=tuple(names))
