"""The page of ``frcnn.check_data``: what is wrong with both splits, and what suits them."""

from collections.abc import Sequence

import numpy as np

from frcnn.data import DetectionDataset
from frcnn.data.objects import objects_of
from frcnn.survey.html import document, listed, pictures, table
from frcnn.survey.pictures import WORST, WORST_NOTE, flawed, worst_covered
from frcnn.survey.settings import Setting
from frcnn.survey.tables import (
    MOST_CLASSES,
    QUANTILES,
    by_size,
    classes,
    quantile_rows,
    sentences,
    shortened,
    suggestion,
)

FLAWED = 12  # pictures of each split
PLACES = 5  # of a kind of problem
FILES = 40  # that are in neither split
FLAWED_NOTE = (
    "The images with the most objects that have a problem. Orange: these objects, as they are "
    "annotated. A grey border is drawn where a box leaves the image."
)


def check_page(
    title: str,
    splits: dict[str, DetectionDataset],
    settings: tuple[Sequence[Setting], Sequence[str]] | None,
    unlisted: Sequence[str],
    ends: Sequence[str],
) -> str:
    """The whole page.

    Args:
        splits: "train" and "val", checked.
        settings: those of `frcnn.survey.settings.settings`; None = no object to measure.
        unlisted: image files of neither split.
        ends: what would end a training run.
    """
    train = splits["train"]
    parts = listed("A training run would end", ends, "problems")
    parts.append(table("Splits", SPLIT_COLUMNS, [split_row(*item) for item in splits.items()]))
    parts.append(problems(splits))
    for name, data in splits.items():
        shown = list(flawed(data, FLAWED))
        if shown:
            parts.append(pictures(f"The worst images of {name}", FLAWED_NOTE, shown))
    parts += neither(unlisted)
    parts.append(class_table(splits))
    if settings is not None:
        found, notes = settings
        objects, now = objects_of(train), found[0]
        worst = worst_covered(train, objects, now.coverage, WORST)
        parts += [
            *listed("Training objects under the anchors", sentences(train, objects, now)),
            *suggestion(found, notes),
            table("Sizes", ["", *QUANTILES], quantile_rows(train, objects, now)),
            classes(train, objects, now),
            by_size(now),
            pictures("The worst covered objects", WORST_NOTE, worst),
        ]
    return document(title, parts)


SPLIT_COLUMNS = ["split", "images", "without objects", "objects", "ignored", "problems"]


def split_row(name: str, data: DetectionDataset) -> list[str]:
    """The numbers of a split."""
    per_image = np.bincount(objects_of(data).image, minlength=len(data))
    numbers = [
        len(data),
        (per_image == 0).sum(),
        per_image.sum(),
        data.ignore.sum(),
        sum(data.problems.counts.values()),
    ]
    return [name, *(f"{number:,}" for number in numbers)]


def problems(splits: dict[str, DetectionDataset]) -> str:
    """A row per kind of problem."""
    rows = [
        [kind, name, action, f"{count:,}", shortly(places)]
        for name, data in splits.items()
        for kind, action, count, places in data.problems.rows()
    ]
    columns = ["problem", "split", "what a run does", "number", "where"]
    notes = [] if rows else ["No problem was found."]
    return table("Problems", columns, rows, notes)


def shortly(places: Sequence[str]) -> str:
    """The first places of a problem."""
    return "; ".join([*places[:PLACES], *["..."] * (len(places) > PLACES)])


def neither(files: Sequence[str]) -> list[str]:
    """The image files that no split has."""
    if not files:
        return []
    more = len(files) - FILES
    texts = [f"`{file}`" for file in files[:FILES]] + [f"and {more:,} more"] * (more > 0)
    return listed(f"Image files in neither split: {len(files):,}", texts)


def class_table(splits: dict[str, DetectionDataset]) -> str:
    """Objects of each class in both splits; of many classes the most frequent and the rarest."""
    counts = {name: data.class_frequencies() for name, data in splits.items()}
    shares = {name: data.image_shares() for name, data in splits.items()}
    order = np.argsort(-counts["train"], kind="stable").tolist()
    rows = [
        [
            splits["train"].class_names[label],
            *(f"{counts[name][label]:,}" for name in splits),
            *(f"{shares[name][label]:.1%}" for name in splits),
        ]
        for label in shortened(order)
    ]
    columns = [
        "class",
        *(f"objects in {name}" for name in splits),
        *(f"images with it in {name}" for name in splits),
    ]
    left_out = len(order) - len(rows)
    notes = [f"{left_out} classes between the first and the last {MOST_CLASSES // 2} are left out."]
    return table("Classes by split", columns, rows, notes if left_out else [])
