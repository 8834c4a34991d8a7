"""Equalization loss v1 (Tan et al., arXiv 2003.05176).

Shape letters: K samples, C foreground classes.
"""

import logging
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.activation import SigmoidLoss, binary
from frcnn.losses.frequencies import Frequencies, check_classes, given_frequencies
from frcnn.losses.samples import Per, Samples
from samplers.arguments import check_choice

log = logging.getLogger(__name__)

SparedAt = Literal["objects", "background", "all"]


class Equalization(SigmoidLoss):
    """Sigmoid cross entropy that does not push rare classes down at objects of other classes.

    ``sum_j w_j BCE_j`` with ``w_j = 1 - E T_j (1 - y_j)``: E is 1 for an object and 0 for
    background, T_j is 1 for a rare class. So a rare class is pushed down by background, and not
    by the objects of the others. Differs from released code: the samples' weights are honoured.

    ``spared_at`` reads the imbalance of objects and background as a long tail, whose most frequent
    class is background: E is then 1 for background alone, or for every sample. The paper has
    neither. With "all", nothing pushes a rare class down.

    Args:
        class_frequencies: [C] shares of the training images that show each class, in [0, 1].
        rare_below: lambda; a class with a lower frequency is rare. The paper's 1.76e-3 (released:
            1.77e-3) is of LVIS v0.5, 1.1e-3 the authors' of LVIS v1: on small or balanced data no
            class is below them, and the loss is the plain sigmoid one. Above 1 every class is rare.
        spared_at: samples of E = 1, "objects" (the paper), "background" or "all".
        per, guided_scale: as for ``CrossEntropy``; the paper divides by "sample"s.
        prior: probability that the untrained head gives each class, in (0, 1); None = keep the
            layer's own initialization.

    Raises:
        ValueError: an argument out of range, or no frequencies.

    Class 2 is rare. An object of class 1 gives the loss of class 1 alone, -ln 0.5; background gives
    that of both:

    >>> from frcnn.losses.examples import few_samples
    >>> Equalization([0.5, 0.001])(few_samples([1, 0], logits=[[0, 0, 0], [0, 0, 0]]))
    tensor([0.6931, 1.3863])
    """

    unfit = {"rpn": "it compares rare and common classes, and the RPN knows one class"}

    def __init__(
        self,
        class_frequencies: Frequencies,
        rare_below: float = 0.00176,
        spared_at: SparedAt = "objects",
        per: Per = "sample",
        guided_scale: float = 1.0,
        prior: float | None = 0.001,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_choice("spared_at", spared_at, get_args(SparedAt))
        self.rare_below, self.spared_at = rare_below, spared_at
        self.rare = given_frequencies(class_frequencies) < rare_below

    def __call__(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        logits, targets = binary(samples)
        spared = (targets == 0) & self.rare.to(logits.device)
        if self.spared_at != "all":
            objects = samples.labels > 0
            spared &= (objects if self.spared_at == "objects" else ~objects)[:, None]
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return loss.masked_fill(spared, 0).sum(1)

    def prepare(self, columns: int) -> None:
        """Log how many classes are rare; ValueError if the frequencies are of other classes."""
        masked, classes = int(self.rare.sum()), len(self.rare)
        check_classes(classes, columns)
        log.info("equalization: %d of %d classes are below %g", masked, classes, self.rare_below)
