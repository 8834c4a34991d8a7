"""AP of rare, common and frequent classes, grouped as LVIS groups them (arXiv 1908.03195).

Shape letters: C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# Name -> fewest training images of its classes; it ends where the next one begins.
GROUPS = {"APr": 0, "APc": 10, "APf": 100}


def frequency_metrics(
    per_class: Mapping[str, Mapping[str, float | None]], class_images: Sequence[int]
) -> dict[str, float | None]:
    """APr, APc and APf: mean AP of the classes with below 10, 10 to 99, and 100 training images up.

    A class without objects to find has no AP and does not count; a group without any AP is None.
    Where all classes are of one group the figures would say nothing, and the dict is empty. The
    APs are COCO's; LVIS judges a class in fewer images (``frcnn.evaluation.federated``).

    Args:
        per_class: name -> its metrics, in the order of the labels.
        class_images: [C] training images that show each class.

    >>> aps = {"cat": {"AP": 0.5}, "dog": {"AP": 0.3}, "okapi": {"AP": 0.1}}
    >>> frequency_metrics(aps, [300, 100, 9])
    {'APr': 0.1, 'APc': None, 'APf': 0.4}
    >>> frequency_metrics(aps, [300, 100, 200])
    {}
    """
    groups = [[name for name, fewest in GROUPS.items() if n >= fewest][-1] for n in class_images]
    return group_means(per_class, groups) if len(set(groups)) > 1 else {}


def group_means(
    per_class: Mapping[str, Mapping[str, float | None]],
    groups: Sequence[str | None],
    names: Sequence[str] = tuple(GROUPS),
) -> dict[str, float | None]:
    """Name of a group -> mean AP of its classes that have one; None if no class has.

    Args:
        per_class: name -> its metrics, in the order of the labels.
        groups: [C] the group of each class.
    """
    pairs = list(zip(groups, per_class.values(), strict=True))
    return {name: _mean([m["AP"] for group, m in pairs if group == name]) for name in names}


def with_frequencies(metrics: dict[str, Any], class_images: Sequence[int]) -> dict[str, Any]:
    """The result of ``coco_metrics``, with ``frequency_metrics`` before ``per_class``.

    Federated data name the groups of their classes: then ``coco_metrics`` has these figures.
    """
    if "APr" in metrics:
        return metrics
    overall = {key: value for key, value in metrics.items() if key != "per_class"}
    own = metrics["per_class"]
    return {**overall, **frequency_metrics(own, class_images), "per_class": own}


def _mean(aps: Sequence[float | None]) -> float | None:
    known = [ap for ap in aps if ap is not None]
    return sum(known) / len(known) if known else None
