"""Seesaw loss (Wang et al., CVPR 2021, arXiv 2008.10032).

Shape letters: K samples, P positives, C foreground classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frcnn.losses.activation import PriorLoss, log_odds
from frcnn.losses.counters import check_counters
from frcnn.losses.samples import Per, Samples, widened
from samplers.arguments import check_not_negative
from samplers.quota import count


class Seesaw(PriorLoss, nn.Module):
    """Cross entropy over the C classes whose negative terms are scaled, and an objectness.

    For an object of class i, the term of class j in the softmax's denominator is multiplied by
    ``S_ij = M_ij C_ij``, which is ``log S_ij`` added to its logit:

    * mitigation ``M_ij = min(1, (N_j / N_i)^p)``: N counts the positives of a class so far, this
      batch included (at least 1). Frequent classes push rare ones down less.
    * compensation ``C_ij = max(1, (q_j / q_i)^q)``: q are the softmax probabilities, without
      gradient; q_i is at least 0.01. A class that is confused with the label is pushed down more.

    Background has no class term. The objectness is a cross entropy of its own over all samples,
    over ``[x_0, 0]``: column 0 is its only logit. Inference multiplies both probabilities.

    Differs from released code: N is over all processes (released: one GPU) and is saved with the
    run; the head has one objectness column (released: two, the same function), and a plain linear
    layer (the best published rows have a cosine layer). As in released code, both terms have the
    same divisor, so the class term is small where positives are few.

    With ``trainer.accumulate`` an optimizer step has several batches.

    Args:
        p: exponent of the mitigation, >= 0; 0 = without it.
        q: exponent of the compensation, >= 0; 0 = without it.
        per, guided_scale: as for ``CrossEntropy``.
        prior: share of objects that the untrained head predicts, in (0, 1); None = keep the
            layer's own initialization.

    Raises:
        ValueError: an argument out of range, or a loaded state that this cannot have had.

    Equal logits: two classes of -ln 0.5, and an objectness of -ln 0.5 for both samples:

    >>> from frcnn.losses.examples import few_samples
    >>> loss = Seesaw()
    >>> loss.prepare(3)
    >>> loss(few_samples([1, 0], logits=[[0, 0, 0], [0, 0, 0]]))
    tensor([1.3863, 0.6931])
    """

    counts: Tensor
    unfit = {"rpn": "it compares rare and common classes, and the RPN knows one class"}

    def __init__(
        self,
        p: float = 0.8,
        q: float = 2.0,
        per: Per = "sample",
        guided_scale: float = 1.0,
        prior: float | None = None,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        check_not_negative("p", p)
        check_not_negative("q", q)
        self.p, self.q = p, q
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self.register_load_state_dict_post_hook(check_counters)

    def forward(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights; in training the counts grow."""
        logits, positive = samples.logits, samples.positive
        if samples.training:
            self._count(samples)
        is_object = (samples.labels > 0).to(logits)
        loss = F.binary_cross_entropy_with_logits(-logits[:, 0], is_object, reduction="none")
        label = samples.labels[positive] - 1
        scaled = logits[positive, 1:] + self.log_scale(logits[positive, 1:], label)
        return loss.index_add(0, positive, F.cross_entropy(scaled, label, reduction="none"))

    @torch.no_grad()
    def log_scale(self, logits: Tensor, label: Tensor) -> Tensor:
        """[P, C] ``log S`` of the logits [P, C] of objects of the classes ``label`` in 0..C-1."""
        log_n = self.counts.clamp(min=1).to(logits).log()
        mitigation = self.p * (log_n - log_n[label, None]).clamp(max=0)
        log_q = logits.log_softmax(1)
        own = log_q.gather(1, label[:, None]).clamp(min=math.log(0.01))
        compensation = self.q * (log_q - own).clamp(min=0)
        is_label = F.one_hot(label, logits.shape[1]).bool()
        return (mitigation + compensation).masked_fill(is_label, 0)

    def scores(self, logits: Tensor) -> Tensor:
        """[K, C+1] logits -> [K, C+1] probabilities that sum to 1: class times objectness."""
        wide = widened(logits)
        objects = wide[:, 1:].softmax(1) * (-wide[:, :1]).sigmoid()
        return torch.cat([wide[:, :1].sigmoid(), objects], 1)

    def prepare(self, columns: int) -> None:
        """Make a count for each class."""
        self.counts = torch.zeros(columns - 1, dtype=torch.int64)

    def initial_bias(self, columns: int) -> Tensor | None:
        """[C+1] with which zero features give the objectness ``prior``."""
        if self.prior is None:
            return None
        bias = torch.zeros(columns)
        bias[0] = -log_odds(self.prior)
        return bias

    @torch.no_grad()
    def _count(self, samples: Samples) -> None:
        own = count(samples.labels, len(self.counts) + 1)[1:]
        self.counts = self.counts + samples.total(own)
