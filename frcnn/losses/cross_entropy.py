"""Cross entropy, the baseline of two stages (Fast R-CNN, arXiv 1504.08083, eq. 1)."""

import torch.nn.functional as F
from torch import Tensor

from frcnn.losses.activation import SoftmaxLoss
from frcnn.losses.samples import Samples


class CrossEntropy(SoftmaxLoss):
    """``-alpha_y log softmax(logits)[y]`` with y the label.

    At the RPN the logits are ``[0, x]``, whose softmax cross entropy is the binary cross entropy
    of ``sigmoid(x)``.

    Args:
        per: what the sum is divided by: kept samples ("sample", torchvision), positives
            ("positive"), per image by its positives ("image"), a constant, or the divisor that
            makes the term follow the box term ("guided").
        guided_scale: class term over box term with ``per="guided"``, > 0. Sampling-Free has 1 at
            the RPN and 2 at the head, and so do the files of ``conf/method/loss``.
        class_weights, class_counts, effective_beta, keep_scale: see ``ClassWeights``.
        prior: share of objects that the untrained head predicts, in (0, 1); None = keep the
            layer's own initialization.

    Raises:
        ValueError: an argument out of range, or counts that are needed and missing.

    >>> from frcnn.losses.examples import few_samples
    >>> CrossEntropy()(few_samples([1, 0], logits=[[0, 0], [0, 1.0986]]))  # -ln 0.5, -ln 0.25
    tensor([0.6931, 1.3863])
    """

    def __call__(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        loss = F.cross_entropy(samples.logits, samples.labels, reduction="none")
        return self.alpha(samples) * loss
