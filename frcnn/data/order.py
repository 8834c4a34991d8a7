"""Which images an epoch has (``data.sampler``): each once, or those of rare classes more often.

An epoch always has as many images as the data set, so a run has the same steps with every order.
The order is a function of (seed, epoch) alone: it has no state, a run resumes by its position,
and all processes agree.

Shape letters: I images, C classes, M objects.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from frcnn.data.dataset import DetectionDataset

log = logging.getLogger(__name__)

OrderName = Literal["repeat_factor", "class_aware"]
# (images [G] of one shape, seed, epoch) -> [G] images of the epoch in order.
Order = Callable[[np.ndarray, int, int], np.ndarray]
STREAM = 1  # the order of the batches uses (seed, epoch) itself


def image_order(
    name: OrderName | None, data: DetectionDataset, repeat_threshold: float
) -> Order | None:
    """The order of a data set's images; None = each image once per epoch, shuffled."""
    if name == "repeat_factor":
        factors = repeat_factors(data, repeat_threshold)
        repeated, images = (factors > 1).sum(), len(factors)
        log.info("%d of %d images are repeated; a round has %.0f", repeated, images, factors.sum())
        return RepeatFactor(factors)
    return ClassAware(images_of_classes(data)) if name == "class_aware" else None


class RepeatFactor:
    """Repeat factor sampling (LVIS, Gupta et al., arXiv 1908.03195, appendix B.2).

    In a round, an image of factor r appears ``floor(r)`` times, and once more with the probability
    of the fraction. Rounds are shuffled, each with draws of its own, and follow each other. Epoch e
    is the e-th piece of this stream that has as many images as the data set. Differs from released
    code: there an epoch is a round, so that a run of as many epochs has more steps.

    Args:
        factors: [I] >= 1, see ``repeat_factors``.
    """

    def __init__(self, factors: np.ndarray) -> None:
        self.factors = factors

    def __call__(self, group: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """[G] images of the epoch."""
        start, stop = epoch * len(group), (epoch + 1) * len(group)
        pieces, end = [group[:0]], 0
        for number in itertools.count():
            if end >= stop:
                return np.concatenate(pieces)
            images = self._round(group, np.random.default_rng((seed, number, STREAM)))
            pieces.append(images[max(0, start - end) : max(0, stop - end)])
            end += len(images)
        raise AssertionError  # for mypy: the stream has no end

    def _round(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        whole = np.floor(self.factors[group])
        more = rng.random(len(group)) < self.factors[group] - whole
        return rng.permutation(np.repeat(group, whole.astype(int) + more))


class ClassAware:
    """Class-aware sampling (Shen et al., arXiv 1512.05830): classes in turn, one image of each.

    The classes are shuffled, then each gives the next image of its own shuffled list; a list that
    has come to its end is shuffled again, and so are the classes. Images without objects are never
    taken, classes without images have no turn. As in mmdetection, an epoch has as many images as
    the data set; where no image of a shape has an object, each of these comes once.

    Args:
        pairs: [Q, 2] image and label - 1 of every class in every image, see ``images_of_classes``.
    """

    def __init__(self, pairs: np.ndarray) -> None:
        self.pairs = pairs

    def __call__(self, group: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """[G] images of the epoch."""
        rng = np.random.default_rng((seed, epoch, STREAM))
        images, labels = self.pairs[np.isin(self.pairs[:, 0], group)].T
        if not len(images):
            return rng.permutation(group)
        lists = [_cycle(images[labels == label], rng) for label in np.unique(labels)]
        classes = _cycle(np.arange(len(lists)), rng)
        return np.array([next(lists[next(classes)]) for _ in range(len(group))])


def repeat_factors(data: DetectionDataset, threshold: float) -> np.ndarray:
    """float64 [I]: the largest ``max(1, sqrt(t / f_c))`` of the image's classes, 1 without any.

    f_c is the share of the images that show class c; ignored objects do not count.
    """
    shares = data.image_shares()
    of_class = np.maximum(1, np.sqrt(threshold / np.where(shares > 0, shares, 1)))
    image, label = images_of_classes(data).T
    factors = np.ones(len(data))
    np.maximum.at(factors, image, of_class[label])
    return factors


def images_of_classes(data: DetectionDataset) -> np.ndarray:
    """int64 [Q, 2]: image and label - 1 of every class in every image; ignored objects left out."""
    image = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    pairs = np.stack([image, data.labels - 1], axis=1)[~data.ignore]
    return np.unique(pairs, axis=0)


def _cycle(items: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """The items shuffled, and again, without an end."""
    while True:
        yield from rng.permutation(items).tolist()
