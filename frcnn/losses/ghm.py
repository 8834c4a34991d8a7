"""Gradient harmonizing, GHM-C and GHM-R (Li et al., arXiv 1811.05181).

Shape letters: K samples, P positives, C foreground classes, M bins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frcnn.losses.activation import SigmoidLoss, binary
from frcnn.losses.samples import BOX_PER, Divided, Per, Samples
from samplers.arguments import check_above_zero, check_at_least_one


class GradientDensity(nn.Module):
    """Gradient norms -> ``beta_i = N / GD(g_i)`` in the paper's unit region form.

    With R_j of the N norms in bin j of M, GD = S_j M and S_j <- m S_j + (1 - m) R_j. Kept here are
    shares, S_j / N, so that batches of another N mix with it. Differs from released code: the
    first batch starts S (there it starts at 0 and all first weights are 1 / (1 - m) too large),
    bins that become empty decay too, and a norm of 1 is in the last bin in every precision. A newly
    filled bin has share (1 - m) R / N, so its first examples weigh 1 / (1 - m) times too much (also
    in released code).

    Args:
        num_bins: M, >= 1.
        momentum: m, in [0, 1).
        nonempty_bins: GD = S_j times the bins that are not empty now (released code) instead of M.
        exact_window: the paper's density itself (eq. 3 to 5), in a window of width 1 / M around
            each norm, instead of unit regions. It is of this batch alone: there is no moving
            average, and ``momentum`` has no effect.

    Raises:
        ValueError: an argument out of range, or ``nonempty_bins`` with an exact window, which has
            no bins.
    """

    def __init__(
        self, num_bins: int, momentum: float, nonempty_bins: bool, exact_window: bool = False
    ) -> None:
        super().__init__()
        check_at_least_one("num_bins", num_bins)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if nonempty_bins and exact_window:
            raise ValueError("nonempty_bins must be false with exact_window, which has no bins")
        self.num_bins = num_bins
        self.momentum = momentum
        self.nonempty_bins = nonempty_bins
        self.exact_window = exact_window
        self.shares: Tensor
        # All 0 until the first batch. Checkpoints have them only where they matter.
        self.register_buffer("shares", torch.zeros(num_bins), persistent=not exact_window)
        self.register_load_state_dict_post_hook(check_shares)

    def forward(self, norms: Tensor, weights: Tensor, samples: Samples) -> Tensor:
        """Norms in [0, 1] and how often each counts, of one shape -> beta of that shape.

        The moving shares move where ``samples.training`` is True.
        """
        norms, weights = norms.detach(), weights.detach().to(norms.dtype)
        if self.exact_window:
            return window_beta(norms, weights, 1 / self.num_bins, samples)
        bins = (norms * self.num_bins).long().clamp(0, self.num_bins - 1)
        counts = norms.new_zeros(self.num_bins).index_add(0, bins.flatten(), weights.flatten())
        counts = samples.total(counts)
        now, before = counts / counts.sum(), self.shares.to(counts)
        moved = torch.where(before.sum() > 0, before.lerp(now, 1 - self.momentum), now)
        shares = torch.where(counts.sum() > 0, moved, before)
        if samples.training:
            self.shares = shares
        width = (now > 0).sum() if self.nonempty_bins else self.num_bins
        return (1 / (shares * width))[bins]


def window_beta(norms: Tensor, weights: Tensor, width: float, samples: Samples) -> Tensor:
    """``N / GD(g)`` of each norm g in [0, 1], of the norms' shape.

    ``GD(g)`` is what the norms in ``[g - width / 2, g + width / 2)`` count, over the length of the
    part of that window in [0, 1].
    """
    pairs, _ = samples.gather(torch.stack([norms.flatten(), weights.flatten()], 1))
    order = pairs[:, 0].argsort()
    ascending = pairs[order, 0].contiguous()
    # Sums of millions of float32 numbers would lose whole examples.
    sums = torch.cat([pairs.new_zeros(1).double(), pairs[order, 1].double().cumsum(0)])
    low, high = norms - width / 2, norms + width / 2
    ends = (torch.searchsorted(ascending, end.contiguous()) for end in (low, high))
    start, stop = (sums[end] for end in ends)
    length = high.clamp(max=1) - low.clamp(min=0)
    return (sums[-1] * length / (stop - start)).to(norms.dtype)


def check_shares(density: nn.Module, keys: object) -> None:
    """Raise ValueError unless the loaded shares of a ``GradientDensity`` are finite and >= 0."""
    shares = density.get_buffer("shares")
    if not (shares.isfinite() & (shares >= 0)).all():
        raise ValueError(f"the densities' shares are not {len(shares)} finite numbers >= 0")


class GHMC(SigmoidLoss, nn.Module):
    """GHM-C: binary cross entropies weighted against the density of their gradient norms.

    ``g = |sigmoid(x) - y|`` for each sample and class. The loss of a sample is the mean over the
    C classes of ``beta BCE``, so that its mean over samples is the paper's over all N = K C. The
    samples' weights count in the densities as so many examples. Differs from released code: there
    they are a mask.

    Its authors report gains at the RPN's classifier and none at the head's, whose examples a
    sampler has chosen already (libuyu/GHM_Detection#15).

    Args:
        num_bins, momentum, nonempty_bins, exact_window: see ``GradientDensity``.
        per, guided_scale: as for ``CrossEntropy``.
        prior: probability that the untrained head gives each class, in (0, 1); None = keep the
            layer's own initialization.

    Raises:
        ValueError: an argument out of range.

    Three norms are 0.25 and one is 0.75, so beta is 4 / (3 * 2) and 4 / (1 * 2):

    >>> from frcnn.losses.examples import few_samples
    >>> GHMC(num_bins=2)(few_samples([1, 1, 1, 0], logits=[[0, 1.0986]] * 4))
    tensor([0.1918, 0.1918, 0.1918, 2.7726])

    which is -ln 0.75 times 2 / 3, and -ln 0.25 times 2.
    """

    def __init__(
        self,
        num_bins: int = 30,
        momentum: float = 0.75,
        nonempty_bins: bool = False,
        exact_window: bool = False,
        per: Per = "sample",
        guided_scale: float = 1.0,
        prior: float | None = 0.01,
    ) -> None:
        super().__init__(per, guided_scale, prior)
        self.density = GradientDensity(num_bins, momentum, nonempty_bins, exact_window)

    def forward(self, samples: Samples) -> Tensor:
        """[K] losses before the samples' weights."""
        logits, targets = binary(samples)
        norms = (logits.sigmoid() - targets).abs()
        weights = samples.weights[:, None].expand_as(norms)
        beta = self.density(norms, weights, samples)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (beta * loss).mean(1)


class GHMR(Divided, nn.Module):
    """GHM-R: ``ASL1(d) = sqrt(d^2 + mu^2) - mu`` weighted against its gradients' density.

    The norm is ``|d| / sqrt(d^2 + mu^2)``, the examples are the 4 P deltas, and the loss of a
    positive is the mean over its four.

    Args:
        mu: errors below it are squared, above it absolute; > 0.
        num_bins, momentum, nonempty_bins, exact_window: see ``GradientDensity``; momentum 0.7 is
            released, 0.5 the paper's by its author (libuyu/GHM_Detection#6).
        weight: factor, > 0; the paper has none, released code 10. Errors far above mu share
            the last bin. If nearly all errors are there, they have ``weight / (4 M)`` of the
            gradient of ``L1``, which sums over the four deltas (at the same ``per``).
        per: as for ``SmoothL1``; the paper divides by "positive"s.

    Raises:
        ValueError: an argument out of range.

    The norm of the error of 4 is 4 / 5, alone in its bin, so beta is 4 / (1 * 2). The others lose
    nothing:

    >>> from frcnn.losses.examples import few_samples
    >>> GHMR(mu=3, num_bins=2)(few_samples([1], deltas=[[4, 0, 0, 0]]))  # 2 * (5 - 3) / 4
    tensor([1.])
    """

    def __init__(
        self,
        mu: float = 0.02,
        num_bins: int = 10,
        momentum: float = 0.7,
        nonempty_bins: bool = False,
        exact_window: bool = False,
        weight: float = 1.0,
        per: Per = "positive",
    ) -> None:
        super().__init__(per, BOX_PER)
        check_above_zero("mu", mu)
        check_above_zero("weight", weight)
        self.mu, self.weight = mu, weight
        self.density = GradientDensity(num_bins, momentum, nonempty_bins, exact_window)

    def forward(self, samples: Samples) -> Tensor:
        """[P] losses of the positives."""
        error = samples.deltas - samples.targets
        root = (error**2 + self.mu**2).sqrt()
        norms = error.abs() / root
        beta = self.density(norms, torch.ones_like(norms), samples)
        return self.weight * (beta * (root - self.mu)).mean(1)
