"""A site: one of the two places where a two-stage detector chooses what to learn from.

Shape letters: N candidates of the batch, K rows of them, C foreground classes (1 at the RPN),
D box predictions a candidate: C+1, or 1 where the boxes are class-agnostic (the RPN).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from frcnn.losses import BoxLoss, ClassLoss, Samples
from frcnn.parallel.group import Alone
from frcnn.sites.assigners.max_iou import Matched, Matcher
from samplers import Candidates, Prediction, Sampler

Observer = Callable[[str, Candidates, Tensor], None]


class Site:
    """Matcher, sampler and losses of one site; the same code at the RPN and at the RCNN head.

    Attributes:
        name: "rpn" or "rcnn".
        observer: called with (name, candidates, weights) after each draw; None for nobody.
        processes: who shares the batch in training; validation and previews are each one's own.
    """

    def __init__(
        self,
        name: str,
        matcher: Matcher,
        sampler: Sampler,
        class_loss: ClassLoss,
        box_loss: BoxLoss,
        box_coder: BoxCoder,
    ) -> None:
        self.name = name
        self.matcher = matcher
        self.sampler = sampler
        self.class_loss = class_loss
        self.box_loss = box_loss
        self.box_coder = box_coder
        self.observer: Observer | None = None
        self.processes = Alone()

    @torch.no_grad()
    def draw(
        self,
        matched: Matched,
        predict: Callable[[Tensor], Prediction],
        generators: Sequence[torch.Generator] | None,
    ) -> tuple[Tensor, Tensor]:
        """Let the sampler weigh the candidates.

        Returns:
            [K] rows of weight above 0, ascending, and their [K] weights.
        """
        candidates = Candidates(
            **vars(matched), predict=predict, generators=generators, gather=self.processes.gather
        )
        weights = self.sampler(candidates)
        if not ((weights >= 0).all() & candidates.finite):  # one look for both
            candidates.check_finite()
            raise ValueError(
                f"{type(self.sampler).__name__} at {self.name}: a weight is negative or NaN"
            )
        if self.observer is not None:
            self.observer(self.name, candidates, weights)
        rows = torch.where(weights > 0)[0]
        return rows, weights[rows]

    def losses(
        self, matched: Matched, rows: Tensor, weights: Tensor, logits: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class and box term of the kept rows, attached to the graph even where there is none.

        This is the one place where losses are weighted, summed and normalized:
        ``sum(w * l) / normalizer`` over the kept, ``sum / normalizer`` over their positives. With
        several processes these are the terms' shares: their sum over the processes is the term.
        """
        samples = self._samples(matched, rows, weights, logits, deltas)
        samples.total = self.processes.total
        box_term = self.box_loss(samples).sum() / self.box_loss.normalizer(samples)
        class_sum = (weights * self.class_loss(samples)).sum()
        # A class loss may be normalized by how large both are.
        samples.class_sum, samples.box_term = class_sum.detach(), box_term.detach()
        return class_sum / self.class_loss.normalizer(samples), box_term

    def prediction(
        self, matched: Matched, rows: Tensor, logits: Tensor, deltas: Tensor
    ) -> Prediction:
        """What a sampler sees of [K, C+1] logits and [K, D, 4] deltas of some rows."""
        samples = self._samples(matched, rows, logits.new_ones(len(rows)), logits, deltas)
        class_loss = self.class_loss(samples)
        box_loss = torch.zeros_like(class_loss)
        box_loss[samples.positive] = self.box_loss(samples)
        activation = self.class_loss.scores
        shown = samples.labels
        if deltas.shape[1] > 1:
            shown = torch.where(shown > 0, shown, activation(logits)[:, 1:].argmax(1) + 1)
        boxes = self.box_coder.decode_single(of_class(deltas, shown), matched.boxes[rows])
        return Prediction(logits, boxes, class_loss + box_loss, class_loss, activation)

    def _samples(
        self, matched: Matched, rows: Tensor, weights: Tensor, logits: Tensor, deltas: Tensor
    ) -> Samples:
        labels = matched.labels[rows].clamp(min=0)  # a preview may ask for ignored rows
        positive = torch.where(labels > 0)[0]
        candidates = rows[positive]
        boxes, objects = matched.boxes[candidates], matched.gt_boxes[matched.gt[candidates]]
        return Samples(
            logits=logits,
            labels=labels,
            weights=weights,
            positive=positive,
            deltas=of_class(deltas[positive], labels[positive]),
            targets=self.box_coder.encode_single(objects, boxes),
            objects=objects,
            decode=lambda given: self.box_coder.decode_single(given, boxes),
            scores=self.class_loss.scores,
        )


def of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """[K, D, 4] deltas, [K] labels -> [K, 4]: those of the label, or the only ones."""
    column = labels if deltas.shape[1] > 1 else torch.zeros_like(labels)
    return deltas[torch.arange(len(deltas), device=deltas.device), column]


def site_generators(
    targets: Sequence[dict[str, Tensor]], site: int, device: torch.device
) -> list[torch.Generator] | None:
    """A random generator for every image, from its target's seed and the site; None without seeds.

    An image's draws at a site then depend on nothing else in the batch.
    """
    if not all("seed" in target for target in targets):
        return None
    # Two streams an image: a draw at the RPN must not shift the draws at the head.
    return [torch.Generator(device).manual_seed(2 * int(t["seed"]) + site) for t in targets]
