"""What the dashboard shows, section by section, in the names that a run logs."""

from typing import NamedTuple

AXES = {"train": "step", "sampling": "step", "val": "epoch"}
METHOD = "method"  # the W&B column that runs are grouped by


class Section(NamedTuple):
    """Panels under one heading.

    Args:
        title: the heading.
        reading: how to read the panels, in plain words.
        curves: metrics drawn over the axis of their kind: mean and standard deviation by method.
        bars: summary values, drawn likewise.
        table: a table's name.
        pictures: names of logged images.
    """

    title: str
    reading: str
    curves: tuple[str, ...] = ()
    bars: tuple[str, ...] = ()
    table: str = ""
    pictures: tuple[str, ...] = ()


def picks(site: str, title: str, reading: str) -> Section:
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
    return Section(title, reading, curves=tuple(f"sampling/{site}/{name}" for name in what))


SECTIONS = (
    Section(
        "Validation AP by epoch",
        "A line is the mean over a method's seeds, its band one standard deviation. All AP are "
        "fractions of 1. Where bands overlap, these seeds do not tell the methods apart: python -m "
        "experiments.report compares them by seed, with intervals and p-values.",
        curves=("val/AP", "val/AP50", "val/AP75"),
    ),
    Section(
        "Best and last AP",
        "best/AP is the highest of all validations, and so always a little flattering, more so "
        "where validation was frequent; last/AP is that of the last weights. The others are of the "
        "last validation: at IoU 0.5 and 0.75, by size of the objects (none where there are no "
        "such objects), and recall with 100 detections an image.",
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
        "Of the last validation, a table a run. A method may gain on a rare class what it loses on "
        "a frequent one.",
        table="val/per_class",
    ),
    Section(
        "Losses",
        "val/loss is over randomly drawn examples whatever the sampler, and can be compared. The "
        "training losses cannot: a sampler that picks hard examples has a high one by design.",
        curves=(
            "val/loss",
            "train/loss",
            "train/loss_objectness",
            "train/loss_rpn_box_reg",
            "train/loss_classifier",
            "train/loss_box_reg",
        ),
    ),
    picks(
        "rcnn",
        "What the head's sampler picks",
        "Picked and passed-over loss far apart and hard_fraction near 1: the hardest are taken; "
        "close together: the choice is blind. effective_sample_size is the number of equally "
        "weighted examples that would average as well. objects_covered is the share of the objects "
        "with a positive that got one.",
    ),
    picks(
        "rpn",
        "What the RPN's sampler picks",
        "The same for anchors. Most methods leave this site random: then their lines coincide.",
    ),
    Section(
        "Cost",
        "Seconds of whole runs, with validation, and of a step; only runs of one machine with "
        "nothing else to do can be compared. train/data_wait is the share spent waiting for "
        "images.",
        curves=("train/seconds_per_step", "train/images_per_second", "train/data_wait"),
        bars=("last/seconds",),
    ),
    Section(
        "Pictures",
        "Validation images with true and predicted boxes; both can be hidden, predictions also by "
        "score.",
        pictures=("val/pictures",),
    ),
)


def figures(names: list[str]) -> Section:
    """The figures of ``experiments.report`` or ``experiments.figures``, logged as images."""
    return Section("Figures", "Drawn from the same runs.", pictures=tuple(names))
