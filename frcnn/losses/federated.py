"""Federated loss (Zhou et al., arXiv 2103.07461; detectron2's ``use_fed_loss``).

Shape letters: K samples, C foreground classes.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.activation import SigmoidLoss, binary
from frcnn.losses.frequencies import Frequencies, check_classes, given_frequencies
from frcnn.losses.samples import Per, Samples
from samplers.arguments import check_at_least_one, check_not_negative
from samplers.quota import count

log = logging.getLogger(__name__)


class Federated(SigmoidLoss):
    """Sigmoid cross entropy over a few classes of the batch: its own, and others drawn at random.

    The batch keeps the classes that its samples are labelled with. If these are fewer than
    ``num_classes``, others are drawn without replacement until there are as many, with
    probabilities proportional to ``images^power``. The binary problems of all other classes are
    left out, so that a rare class is pushed down in few batches only.

    Differs from released code: the classes are those of the samples of all processes, and all
    processes draw the same (released: each GPU by itself); a class without training images is never
    drawn, also where fewer than ``num_classes`` are left (released: an error). ``num_classes``
    counts object classes alone; in released code background counts as one of them wherever it has a
    sample, so that 49 object classes of 50 are kept. LVIS's own lists of absent classes are not
    used, as in released code.

    Args:
        class_frequencies: [C] shares of the training images that show each class, in [0, 1].
        num_classes: classes to keep, at least 1. Data with fewer has the plain sigmoid loss.
        power: exponent of the frequencies, >= 0; 0 draws all classes alike.
        per, guided_scale: as for ``CrossEntropy``; released code divides by "sample"s.
        prior: probability that the untrained head gives each class, in (0, 1); None = keep the
            layer's own initialization.

    Raises:
        ValueError: an argument out of range, or no frequencies.

    One class is kept, and the batch has it already. The object has only its own term, -ln 0.5:

    >>> from frcnn.losses.examples import few_samples
    >>> Federated([0.5, 0.5], num_classes=1)(few_samples([1], logits=[[0, 0, 0]]))
    tensor([0.6931])
    """

    unfit = {"rpn": "it draws some of many classes, and the RPN knows one class"}

    def __init__(
        self,
        class_frequencies: Frequencies,
        num_classes: int = 50,
        power: float = 0.5,
        per: Per = "sample",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_at_least_one("num_classes", num_classes)
        check_not_negative("power", power)
        frequencies = given_frequencies(class_frequencies)
        # 0^0 is 1: a class without images stays at 0.
        self.odds = torch.where(frequencies > 0, frequencies**power, 0)
        self.num_classes = num_classes

    def __call__(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        logits, targets = binary(samples)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return loss.masked_fill(~self.kept(samples), 0).sum(1)

    def kept(self, samples: Samples) -> Tensor:
        """[C] bool: the classes that this batch learns.

        The smallest ``E / odds`` of exponential numbers E are a draw without replacement. They are
        one number per class, the same in all processes and in the preview.
        """
        counts = count(samples.labels, len(self.odds) + 1)[1:]
        present = samples.total(counts) > 0
        device = present.device
        drawn = torch.rand(len(present), generator=samples.generator, device=device)
        odds = self.odds.to(device)
        keys = -torch.log1p(-drawn.double()) / odds  # infinite where the odds are 0
        keys = keys.masked_fill(odds == 0, math.inf).masked_fill(present, -1)
        place = keys.argsort(stable=True).argsort(stable=True)
        return present | ((place < self.num_classes) & keys.isfinite())

    def prepare(self, columns: int) -> None:
        """Log how many classes are kept; ValueError if the frequencies are of other classes."""
        classes = len(self.odds)
        check_classes(classes, columns)
        log.info("federated: %d of %d classes per batch", min(self.num_classes, classes), classes)
