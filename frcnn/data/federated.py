"""What LVIS's files say beyond COCO's: which classes an image was searched for (arXiv 1908.03195).

Shape letters: I images, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# The keys of LVIS's images.
NEGATIVE, NOT_EXHAUSTIVE = "neg_category_ids", "not_exhaustive_category_ids"


class Federated(NamedTuple):
    """Pairs of an image's index and a label, and how frequent each class is.

    negative int64 [N, 2], the image was searched and has no object of the class; not_exhaustive
    int64 [M, 2], it may have more objects of the class than are annotated; frequency [C], "r", "c"
    or "f" (in below 10, 10 to 99, 100 training images and more), None = not stated.
    """

    negative: np.ndarray
    not_exhaustive: np.ndarray
    frequency: list[str | None]

    def kept(self, mask: np.ndarray) -> "Federated":
        """The pairs of the images where the bool mask [I] is True, numbered without the others."""
        index = np.cumsum(mask) - 1

        def renumbered(pairs: np.ndarray) -> np.ndarray:
            pairs = pairs[mask[pairs[:, 0]]]
            return np.stack([index[pairs[:, 0]], pairs[:, 1]], axis=1)

        negative, not_exhaustive = map(renumbered, self[:2])
        return Federated(negative, not_exhaustive, self.frequency)

    def add_to(self, truth: Mapping[str, Any]) -> dict[str, Any]:
        """A COCO dict of the images 0..I - 1 and the labels 1..C with LVIS's keys."""
        images = [row | {NEGATIVE: [], NOT_EXHAUSTIVE: []} for row in truth["images"]]
        for key, pairs in zip((NEGATIVE, NOT_EXHAUSTIVE), self[:2], strict=True):
            for image, label in pairs.tolist():
                images[image][key].append(label)
        categories = [
            row | {"frequency": group}
            for row, group in zip(truth["categories"], self.frequency, strict=True)
        ]
        return {**truth, "images": images, "categories": categories}


def joined(parts: Sequence[Federated | None], images: Sequence[int]) -> Federated | None:
    """Those of data sets of so many images, one after the other; None if one has none."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    starts = np.cumsum([0, *images[:-1]]).tolist()
    negative, not_exhaustive = (
        np.concatenate([pairs[k] + [start, 0] for pairs, start in zip(known, starts, strict=True)])
        for k in (0, 1)
    )
    return Federated(negative, not_exhaustive, known[0].frequency)
