"""The project's targets against what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.benchmark.report import WHY, Row, found, shown, table
from experiments.benchmark.setting import options


class Target(NamedTuple):
    """A bound on a figure. ``least``: the figure must be at least the bound, else at most."""

    what: str
    bound: float
    place: tuple[str, str, str, str]  # part, beginning of the table's title, first cell, column
    least: bool = False
    bf16: bool = False


STEP = "times as fast as stock torchvision, fp32"
LIMIT = "step / limit"
MORE = "more than random, % of its step"
PROPOSALS = "8 images x 2,000 candidates x 30 objects"
ANCHORS = "8 images x 200,000 candidates x 30 objects"
ANNOTATIONS = ("data", "Loading COCO", "118,000 images, 860,000 boxes")
TARGETS = (
    Target("fp32 step, times as fast as stock torchvision in fp32", 1.8,
           ("step", "Training step: fasterrcnn", "ours, fp32", STEP), least=True),
    Target("bf16 step, times as fast as stock torchvision in fp32", 3.5,
           ("step", "Training step: fasterrcnn", "ours, bf16", STEP), least=True, bf16=True),
    Target("fp32 step, times its products", 1.14,
           ("step", "Distance from the limit: fasterrcnn", "ours, fp32", LIMIT)),
    Target("bf16 step, times its products", 1.28,
           ("step", "Distance from the limit: fasterrcnn", "ours, bf16", LIMIT), bf16=True),
    *(Target(f"`{name}`, bf16 step of trained weights, times its products", 1.25,
             ("samplers", "Distance from the limit by sampler", f"{name}, after 20 steps", LIMIT),
             bf16=True)
      for name in ("sampler=ohem", "sampler=pisa")),
    Target("RetinaNet's fp32 step, times as fast as stock torchvision in fp32", 1.2,
           ("step", "Training step: retinanet", "ours, fp32", STEP), least=True),
    Target("RetinaNet's bf16 step, times as fast as stock torchvision in fp32", 2.1,
           ("step", "Training step: retinanet", "ours, bf16", STEP), least=True, bf16=True),
    *(Target(f"`{name}`, labels, drawing and losses beyond random's in % of a step", 2,
             ("samplers", "A step", name, MORE))
      for name in ("sampler=iou_balanced", "sampler=instance_balanced", "sampler/rpn=iou_balanced",
                   "sampler/rpn=instance_balanced", "sampler/rpn=hard_negative",
                   "sampler/rpn=ohem", "loss=focal", "loss=ghm")),
    *(Target(f"`sampler/rcnn={name}`, ms of a call beyond the preview, {PROPOSALS}", 20,
             ("samplers", f"Call of a sampler/rcnn: {PROPOSALS}", name, "ms"))
      for name in options("sampler/rcnn")),
    *(Target(f"`sampler/rpn={name}`, call times random's, {ANCHORS}", most,
             ("samplers", f"Call of a sampler/rpn: {ANCHORS}", name, "times random"))
      for name, most in (("iou_balanced", 2), ("instance_balanced", 2), ("hard_negative", 2),
                         ("ohem", 3))),
    Target("`loss=bucketed_rank_sort` of 2,000 samples of 80 classes, times a step", 0.15,
           ("losses", "Class losses", "bucketed_rank_sort", "times a step")),
    Target("waiting for data, % of the time", 5,
           ("data", "Waiting", "", "share of time waiting, %")),
    Target("matching 1,000 objects with 250,000 anchors, MB", 300,
           ("matching", "Matching the largest", "", "peak memory above the baseline, MB")),
    Target("loading annotations of COCO's size, seconds", 20, (*ANNOTATIONS, "seconds")),
    Target("loading annotations of COCO's size, MB", 1_500, (*ANNOTATIONS, "peak memory, MB")),
)  # fmt: skip

# Against commit 832344e, by ``against=DIR``.
THERE, FASTER = "seconds here / there's random", "times as fast as there"
AGAINST = (
    *(
        Target(
            f"`sampler={name}`, bf16 step, times random's there",
            1.42,
            ("against", "", f"{name} bf16", THERE),
            bf16=True,
        )
        for name in ("ohem", "pisa")
    ),
    Target(
        "images per second of validation, bf16, times those there",
        1.25,
        ("against", "", "validation bf16", FASTER),
        least=True,
        bf16=True,
    ),
    Target(
        "`make train`, training and validation, bf16, times as fast as there",
        1.15,
        ("against", "", "make-train bf16", FASTER),
        least=True,
        bf16=True,
    ),
)


def compared(
    results: Mapping[str, Any],
    targets: Sequence[Target] = TARGETS,
    title: str = "Targets of two CPU cores",
) -> dict[str, Any]:
    """A table of the targets of a CPU. A target within the measured quartiles is undecided."""
    bf16 = results["machine"]["computes in bf16"]
    rows = [_row(target, found(results, *target.place), bf16) for target in targets]
    note = "The median is compared with the bound. Undecided: the bound lies between the quartiles."
    return table(title, rows, note)


def _row(target: Target, value: Any, bf16: bool) -> Row:
    sign = "at least" if target.least else "at most"
    row: Row = {"what": target.what, "target": f"{sign} {target.bound:,g}"}
    if value is None or (target.bf16 and not bf16):
        without = "no bf16 arithmetic here" if target.bf16 and not bf16 else "no such row"
        fp32 = "" if value is None else f"; in fp32 {shown(value)}"
        return row | {"measured": f"{WHY}: {without}{fp32}", "reached": ""}
    return row | {"measured": value, "reached": _reached(target, value)}


def _reached(target: Target, value: Any) -> bool | str:
    spread = value if isinstance(value, dict) else dict.fromkeys(("median", "q1", "q3"), value)
    if spread["q1"] < spread["q3"] and spread["q1"] <= target.bound <= spread["q3"]:
        return "undecided"
    median = spread["median"]
    return bool(median >= target.bound if target.least else median <= target.bound)
