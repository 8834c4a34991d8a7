"""A weight per class: fixed, by frequency, or by effective number.

Shape letters: K samples, C foreground classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from frcnn.losses.samples import Samples, total_count

Scheme = Literal["batch", "batch_objects", "data", "effective"] | float | Sequence[float] | None
Counts = Literal["data"] | Sequence[int] | None


class ClassWeights:
    """Samples -> [K] weights >= 0, by label.

    Args:
        scheme: None = 1 everywhere. A number in [0, 1] = alpha for every object class and
            1 - alpha for background (RetinaNet, arXiv 1708.02002, eq. 3); C+1 numbers, background
            first. "batch" = ``1 / ln(1.10 + f)`` with f the share of a label among the samples
            (the form of ENet, arXiv 1606.02147); "batch_objects" = the same, all object classes
            merged into one label; "data" = the same of a class among the data set's objects;
            "effective" = ``(1 - beta) / (1 - beta^n)`` of its n objects, divided by the mean over
            the classes (arXiv 1901.05555). A data set has no count of background: there it gets
            the mean of the object classes.
        counts: objects of each of the C classes; for "data" and "effective".
        effective_beta: beta, in [0, 1).
        keep_scale: divide by the mean weight of the samples, so that the loss keeps its scale:
            without it such weights act as another learning rate too.

    Raises:
        ValueError: an argument out of range, or no counts where they are needed.

    >>> from frcnn.losses.examples import few_samples
    >>> ClassWeights(0.25, None, 0.999, keep_scale=False)(few_samples([1, 0]))
    tensor([0.2500, 0.7500])
    >>> ClassWeights(0.25, None, 0.999, keep_scale=True)(few_samples([1, 0]))  # over 0.5
    tensor([0.5000, 1.5000])
    """

    def __init__(
        self, scheme: Scheme, counts: Counts, effective_beta: float, keep_scale: bool
    ) -> None:
        if scheme in ("data", "effective") and (counts is None or isinstance(counts, str)):
            raise ValueError(
                f"class_weights={scheme} needs class_counts: the objects of each class"
            )
        if isinstance(scheme, (int, float)) and not 0 <= scheme <= 1:
            raise ValueError(f"class_weights as one number must be in [0, 1], got {scheme}")
        if not 0 <= effective_beta < 1:
            raise ValueError(f"effective_beta must be in [0, 1), got {effective_beta}")
        self.scheme = scheme
        self.keep_scale = keep_scale
        self.table: Tensor | None = None
        if scheme in ("data", "effective"):
            objects = torch.tensor(counts, dtype=torch.float64)
            rare = by_frequency(objects) if scheme == "data" else by_number(objects, effective_beta)
            self.table = torch.cat([rare.mean()[None], rare])
        elif isinstance(scheme, Sequence) and not isinstance(scheme, str):
            self.table = torch.tensor(scheme, dtype=torch.float64)

    def __call__(self, samples: Samples) -> Tensor:
        """[K] weights of the samples' labels, without gradient."""
        weights = self._of_classes(samples)[samples.labels]
        if self.keep_scale:
            mean = samples.total(weights.sum()) / total_count(samples, len(weights))
            weights = weights / mean.clamp(min=torch.finfo(weights.dtype).tiny)
        return weights

    def check(self, columns: int) -> None:
        """Raise ValueError unless the weights suit ``columns`` classes, C+1.

        Numbers must be for these. A data set's say how objects of different classes compare: with
        one class they would be a factor of the whole loss and nothing else.
        """
        if self.table is not None and len(self.table) != columns:
            raise ValueError(
                f"class_weights={self.scheme}: {len(self.table)} weights, but {columns} classes "
                "with the background counted"
            )
        if self.scheme in ("data", "effective") and columns == 2:
            raise ValueError(
                f"class_weights={self.scheme} compares object classes, and here there is only one"
            )

    def _of_classes(self, samples: Samples) -> Tensor:
        """[C+1]."""
        columns, like = samples.logits.shape[1], samples.logits.detach()
        if self.table is not None:
            return self.table.to(like)
        if self.scheme == "batch":
            counts = torch.bincount(samples.labels, minlength=columns)
            return by_frequency(samples.total(counts.to(like.dtype)))
        if self.scheme == "batch_objects":
            objects = samples.labels > 0
            counts = samples.total(torch.stack([(~objects).sum(), objects.sum()]).to(like.dtype))
            return by_frequency(counts)[torch.arange(columns, device=like.device).clamp(max=1)]
        if self.scheme is None:
            return like.new_ones(columns)
        alpha = like.new_full((columns,), float(self.scheme))  # type: ignore[arg-type]
        alpha[0] = 1 - alpha[0]
        return alpha


def by_frequency(counts: Tensor) -> Tensor:
    """[C] or [C+1] counts -> weights ``1 / ln(1.10 + f)``, f the share of a class.

    From 1.35 for the only class to 10.5 for an absent one.
    """
    shares = counts / counts.sum().clamp(min=1)
    return 1 / (1.10 + shares).log()


def by_number(counts: Tensor, beta: float) -> Tensor:
    """[C] counts n -> [C] weights ``(1 - beta) / (1 - beta^n)`` over their mean.

    A class without objects counts as one object.
    """
    weights = (1 - beta) / (1 - beta ** counts.clamp(min=1))
    return weights / weights.mean()
