"""Tables and sentences about the objects of a split under a model's anchors, as HTML."""

import math
from collections.abc import Sequence

import numpy as np

from frcnn.data import DetectionDataset
from frcnn.data.image_size import LARGEST, MOST_SMALL, SMALL, SMALLEST, STEP
from frcnn.data.objects import Objects
from frcnn.survey.html import listed, table
from frcnn.survey.settings import Setting
from frcnn.survey.suggest import GAIN

MOST_CLASSES = 20  # rows of the table
LIMITS = (0.3, 0.5, 0.7)  # IoU
QUANTILES = {"least": 0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95,
             "most": 1}  # fmt: skip
BELOW = [f"IoU < {limit:g}" for limit in LIMITS]


def sentences(data: DetectionDataset, objects: Objects, now: Setting) -> list[str]:
    """What the page says first."""
    counts = np.bincount(objects.image, minlength=len(data))
    empty, ignored = int((counts == 0).sum()), int(data.ignore.sum())
    found = now.coverage
    numbers, names = data.class_frequencies(), data.class_names
    most, fewest = int(numbers.argmax()), int(numbers.argmin())
    return [
        f"{len(data):,} images with {len(objects.boxes):,} objects; {empty:,} images have none. "
        f"{ignored:,} more objects are ignored (difficult or crowd) and counted nowhere else.",
        f"Classes: {len(names)}. The most frequent is {names[most]} ({numbers[most]:,} objects), "
        f"the rarest {names[fewest]} ({numbers[fewest]:,}).",
        f"At `min_size` {now.min_size} and `max_size` {now.max_size} half of the objects are at "
        f"least {np.median(found.sizes):.0f} pixels large (square root of the area), and "
        f"{percent((found.sizes < SMALL).mean())} are smaller than {SMALL}.",
        f"{percent(found.below(0.5))} of the objects have no anchor of IoU 0.5, "
        f"{percent(found.below(0.7))} none of IoU 0.7.",
    ]


def suggestion(settings: Sequence[Setting], notes: Sequence[str]) -> list[str]:
    """The line to copy, and the numbers that it rests on."""
    said = [f"{WHERE['min_size' in one.override]}: `{one.override}`" for one in last_of(settings)]
    nothing = ["Image size and anchors suit the data set as they are."]
    columns = ["setting", "image size", "anchor sizes", "pixels per image",
               f"objects < {SMALL} px", "mean IoU", *BELOW]  # fmt: skip
    rows = [setting_row(one) for one in settings]
    return [
        *listed("Suggestion", [*(said or nothing), *notes]),
        table("Suggested and present values", columns, rows, [RULE_SIZE, RULE_ANCHORS]),
    ]


def last_of(settings: Sequence[Setting]) -> list[Setting]:
    """The last suggestion at the present image size, and the last one at the suggested size."""
    sized = {"min_size" in one.override: one for one in settings if one.override}
    return [sized[size] for size in sorted(sized)]


WHERE = {
    False: "At the present image size",
    True: "At the smallest image size that is worth a trial",
}
RULE_SIZE = (
    f"Image size: the smallest `min_size` at which at most {MOST_SMALL:.0%} of the objects are "
    f"smaller than {SMALL} pixels, which is four positions of a pyramid's finest level along each "
    f"side. It is a multiple of {STEP}, from {SMALLEST} (or the images' own size, if that is "
    f"smaller) to {LARGEST:g} times the images' own size. `max_size` lets 95% of the images have "
    "the whole `min_size`. A larger image costs time and shows more detail. No image size is "
    "suggested that leaves more objects below IoU 0.5 than the model as configured."
)
RULE_ANCHORS = (
    "Anchor sizes: they double from level to level, as the strides do, so one number is free: the "
    "finest. Trials are 2 to 16 times the finest stride, four per octave. Those that leave more "
    "objects below IoU 0.5 than the model's own anchors are out. Of the others the one with the "
    "largest mean IoU is taken, if it raises that of the model's own anchors by "
    f"{GAIN:g}. Nothing was trained: a suggestion is a place to start from."
)


def setting_row(one: Setting) -> list[str]:
    """A row of the table of settings."""
    found = one.coverage
    pixels = sum(view.images * math.prod(view.size) for view in one.views)
    return [
        one.override or "as configured",
        f"{one.min_size}, {one.max_size}",
        ", ".join("/".join(f"{size:g}" for size in level) for level in one.generator.sizes),
        f"{pixels / sum(view.images for view in one.views):,.0f}",
        percent((found.sizes < SMALL).mean()),
        f"{found.ious.mean():.3f}",
        *[percent(found.below(limit)) for limit in LIMITS],
    ]


def quantile_rows(data: DetectionDataset, objects: Objects, now: Setting) -> list[list[str]]:
    """How objects and images are spread."""
    columns = {
        "√area in pixels of the image": objects.sizes,
        "√area in pixels after resizing": now.coverage.sizes,
        "width / height": objects.ratios,
        "objects per image": np.bincount(objects.image, minlength=len(data)),
        "best IoU": now.coverage.ious,
    }
    at = list(QUANTILES.values())
    return [[n, *(f"{q:.3g}" for q in np.quantile(v, at))] for n, v in columns.items()]


def classes(data: DetectionDataset, objects: Objects, now: Setting) -> str:
    """A row per class; of many classes the most frequent and the rarest ones."""
    counts, shown = data.class_frequencies(), data.image_shares()
    order = np.argsort(-counts, kind="stable").tolist()
    rows = []
    for label in shortened(order):
        mine = objects.labels == label + 1
        few = not mine.any()
        rows.append([
            data.class_names[label],
            f"{counts[label]:,}",
            percent(counts[label] / counts.sum()),
            percent(shown[label]),
            "–" if few else f"{np.median(objects.sizes[mine]):.0f}",
            "–" if few else f"{np.median(now.coverage.sizes[mine]):.0f}",
            "–" if few else percent((now.coverage.ious[mine] < 0.5).mean()),
        ])  # fmt: skip
    columns = ["class", "objects", "share", "images with it", "median √area", "after resizing",
               BELOW[1]]  # fmt: skip
    missing = len(order) - len(rows)
    notes = [f"The {MOST_CLASSES // 2} most frequent and the {MOST_CLASSES // 2} rarest; "
             f"{missing} classes between them are left out."] if missing else []  # fmt: skip
    return table("Classes", columns, rows, notes)


def shortened(order: list[int]) -> list[int]:
    """The first and the last ones, at most ``MOST_CLASSES``."""
    half = MOST_CLASSES // 2
    return order if len(order) <= MOST_CLASSES else order[:half] + order[-half:]


def by_size(now: Setting) -> str:
    """The best IoU by size after resizing, an octave per row."""
    found = now.coverage
    octave = np.floor(np.log2(found.sizes)).astype(int)
    rows = []
    for number in np.unique(octave).tolist():
        ious = found.ious[octave == number]
        rows.append([
            f"{2.0**number:g} to {2.0 ** (number + 1):g} pixels",
            f"{len(ious):,}",
            percent(len(ious) / len(octave)),
            f"{ious.mean():.3f}",
            *[percent((ious < limit).mean()) for limit in LIMITS],
        ])  # fmt: skip
    columns = ["√area after resizing", "objects", "share", "mean IoU", *BELOW]
    return table("Best anchors by size", columns, rows)


def percent(share: float) -> str:
    """``0.1234`` -> ``12.3%``."""
    return f"{share:.1%}"
