"""A site: a place where a detector turns candidate boxes into training examples.

Shape letters: N candidates of the batch, K rows of them, P positives among these, C object classes
(1 at the RPN: "object"), D box predictions per candidate: C+1, or 1 where the boxes are
class-agnostic (the RPN).
"""

from collections.abc import Callable, ItemsView, Sequence, ValuesView
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from frcnn.losses import BoxLoss, ClassLoss, Samples, SmoothL1
from frcnn.losses.samples import normalized
from frcnn.losses.validation import ScoreCrossEntropy
from frcnn.parallel.group import Exchange, SingleProcess
from frcnn.sites.assigners import Assigned, Assigner, MaxIoU, Outputs, Unassigned
from frcnn.sites.assigners.contract import no_outputs
from frcnn.sites.kinds import KINDS, term_names
from frcnn.sites.weighers import Weighed, Weigher
from samplers import Candidates, Prediction, Random, Sampler
from samplers.host import Numbers, ask_rows, rows_where

Observer = Callable[[str, Candidates, Tensor], None]
# Rows [K] of the candidates -> [K, C+1] logits and [K, D, 4] deltas, float32.
Head = Callable[[Tensor], tuple[Tensor, Tensor]]
# Odd, so that the third site and later ones get streams of their own.
SEED_STEP = 0x9E3779B97F4A7C15


class Site(nn.Module):
    """Assigner, sampler, losses and an optional weigher; the same code at every kind of site.

    In training mode the terms are what the detector learns from. In eval mode they are the
    validation loss, one definition for every run: the kind's usual IoU thresholds, randomly drawn
    samples with its usual budget, binary cross entropy of the scores, and smooth L1.

    Args:
        name: of the site within its detector, such as "rpn" or "rcnn2".
        kind: "rpn", "rcnn" or "dense"; None = its name.
        weigher: None = both losses as they are.
        class_factor, box_factor: factors of the two terms in training.

    Raises:
        ValueError: an unknown kind.

    Attributes:
        index: place of the site among those of its detector.
        observer: called with (name, candidates, weights) after each draw; None = no observer.
        exchange: sums and gathers values over the processes, and over the batches of a step. A
            training loop of your own with several processes sets it
            (``frcnn.parallel.group.ProcessGroup``).
        seed: of ``Samples.generator``, the same in all processes; None = torch's global generator.
    """

    def __init__(
        self,
        name: str,
        assigner: Assigner,
        sampler: Sampler,
        class_loss: ClassLoss,
        box_loss: BoxLoss,
        box_coder: BoxCoder,
        *,
        kind: str | None = None,
        weigher: Weigher | None = None,
        class_factor: float = 1.0,
        box_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.name = name
        self.kind = kind or name
        if self.kind not in KINDS:
            raise ValueError(f"kind must be {', '.join(KINDS)}, got {self.kind!r}")
        self.assigner = assigner
        self.sampler = sampler
        self.class_loss = class_loss
        self.box_loss = box_loss
        self.weigher = weigher
        self.box_coder = box_coder
        self.class_factor, self.box_factor = class_factor, box_factor
        self.term_names = term_names(name, self.kind)
        self.index = 0
        self.observer: Observer | None = None
        self.exchange: Exchange = SingleProcess()
        self.seed: int | None = None

    def forward(
        self,
        candidates: Unassigned,
        preview: Head,
        head: Head,
        targets: Sequence[dict[str, Tensor]],
        observed: Head | None = None,
    ) -> dict[str, Tensor]:
        """Boxes to assigned labels to sampled rows to named terms.

        Args:
            preview: rows -> logits and deltas, without gradient.
            head: the same with gradient where gradients are on; called once, with the kept rows in
                ascending order.
            targets: of each image; "seed" gives the image its own random generator, "placeholder"
                marks an image that only fills an empty batch (``frcnn.data.empty_batch``).
            observed: the preview that an observer gets; None = ``preview``. An observer must change
                nothing, so what it asks for is not kept for the pass with gradient.
        """
        candidates.predict = partial(self._outputs, candidates.stacked, preview)
        candidates.total = self.exchange.total
        # An observer is shown the run's own labels, also in eval mode.
        own = self.training or self.observer is not None
        assigner = self.assigner if own else usual_assigner(self.kind)
        with torch.no_grad():
            assigned = assigner(candidates)
        assigned.placeholders = sum("placeholder" in target for target in targets)
        candidates.predict = no_outputs  # the preview refers to the candidates: break the cycle
        generators = site_generators(targets, self.index, assigned.boxes.device)

        def predict(rows: Tensor, look: Head = preview) -> Prediction:
            # Asked for before the preview: a GPU's host then waits once for both.
            ask = ask_counted(assigned.labels[rows])
            return self.prediction(assigned, rows, *look(rows), ask)

        show = None if observed is None else partial(predict, look=observed)
        kept = self.draw(assigned, predict, generators, show)
        candidates.kept = kept.sizes
        logits, deltas = head(kept.rows)
        return self.losses(assigned, kept.rows, kept.weights, logits, deltas, kept.positive)

    @torch.no_grad()
    def draw(
        self,
        assigned: Assigned,
        predict: Callable[[Tensor], Prediction],
        generators: Sequence[torch.Generator] | None,
        show: Callable[[Tensor], Prediction] | None = None,
    ) -> "Kept":
        """Let the sampler weigh the candidates; a GPU's host waits once, for all checks and counts.

        Args:
            predict: what the sampler may ask.
            show: what the observer may ask; None = ``predict``.

        Raises:
            ValueError: a weight is negative or NaN; FloatingPointError: a loss that the sampler
                ranks by is not finite.
        """
        candidates = Candidates(
            boxes=assigned.boxes,
            labels=assigned.labels,
            ious=assigned.ious,
            gt=assigned.gt,
            gt_boxes=assigned.gt_boxes,
            image=assigned.image,
            predict=predict,
            generators=generators,
            sizes=assigned.sizes,
            gather=self.exchange.gather,
        )
        sampler = self.sampler if self.training else self._validation_sampler()
        weights = sampler(candidates)
        kept = weights > 0
        is_right = (weights >= 0).all() & candidates.finite
        sizes = torch.stack([part.sum() for part in kept.split(list(candidates.sizes))])
        found = Numbers(is_right, sizes, (kept & candidates.positive).sum())
        right, kept_sizes, positives = found.read()
        if not right:
            candidates.check_finite()
            raise ValueError(
                f"{type(sampler).__name__} at {self.name}: a weight is negative or NaN"
            )
        if self.observer is not None:
            candidates.predict = show or predict
            self.observer(self.name, candidates, weights)
        rows = rows_where(kept, sum(kept_sizes))
        positive = rows_where(assigned.labels[rows] > 0, positives)
        return Kept(rows, weights[rows], positive, kept_sizes)

    def losses(
        self,
        assigned: Assigned,
        rows: Tensor,
        weights: Tensor,
        logits: Tensor,
        deltas: Tensor,
        positive: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named terms of the kept rows, attached to the graph even where there is no row.

        This is the one place where losses are weighted, summed and normalized (a weigher may name
        another normalizer):
        ``sum(w * l) / normalizer`` over the kept rows for the class term, ``sum / normalizer`` over
        their positives for the box term. With several processes these are the terms' shares: their
        sum over the processes is the term.

        Args:
            positive: [P] rows of the positives among the K, if they are known.

        Raises:
            ValueError: a weigher's term has the name of another term.
        """
        samples = self._samples(assigned, rows, weights, logits, deltas, positive)
        samples.training = self.training
        class_loss, box_loss, weigher = self._learning() if self.training else self._validating()
        class_values, box_values = class_loss(samples), box_loss(samples)
        weighed = Weighed(class_values, box_values)
        if weigher is not None:
            self._set_values(samples, weighed, class_loss, box_loss)
            weighed = weigher(samples, class_values, box_values)
        class_term, box_term = self._normalized(samples, weighed, class_loss, box_loss)
        if self.training:
            class_term, box_term = self.class_factor * class_term, self.box_factor * box_term
        terms = dict(zip(self.term_names, (class_term, box_term), strict=True))
        for name, value in weighed.terms.items():
            key = f"loss_{self.name}_{name}"
            if key in terms:
                raise ValueError(f"a weigher's term {name!r} has the name of another one, {key}")
            terms[key] = value
        return self._with_all_parameters(terms)

    def prediction(
        self,
        assigned: Assigned,
        rows: Tensor,
        logits: Tensor,
        deltas: Tensor,
        ask: Callable[[], list[Tensor]] | None = None,
    ) -> Prediction:
        """What a sampler sees of [K, C+1] logits and [K, D, 4] deltas of some rows.

        Losses are computed over the rows that are not ignored, so that an ignored candidate
        changes nothing; its own losses are 0.

        Args:
            ask: of ``ask_counted``, if it was called before.
        """
        labels = assigned.labels[rows]
        counted, positive = (ask or ask_counted(labels))()
        class_values, values = logits.new_zeros(2, len(rows))
        samples = self._samples(
            assigned,
            rows[counted],
            logits.new_ones(len(counted)),
            logits[counted],
            deltas[counted],
            torch.searchsorted(counted, positive),
        )
        class_values[counted] = self.class_loss(samples).to(class_values)
        values[positive] = self.box_loss(samples).to(values)
        activation = self.class_loss.scores

        def boxes() -> Tensor:
            box_class = labels
            if deltas.shape[1] > 1:
                best = activation(logits)[:, 1:].argmax(1) + 1
                box_class = torch.where(labels > 0, labels, best)
            own = deltas_of_label(deltas, box_class)
            return self.box_coder.decode_single(own, assigned.boxes[rows])

        return Prediction(logits, boxes, class_values + values, class_values, activation)

    def _learning(self) -> tuple[ClassLoss, BoxLoss, Weigher | None]:
        return self.class_loss, self.box_loss, self.weigher

    def _validating(self) -> tuple[ClassLoss, BoxLoss, Weigher | None]:
        return ScoreCrossEntropy(self.class_loss.scores), SmoothL1(), None

    def _validation_sampler(self) -> Sampler:
        kind = KINDS[self.kind]
        return Random(kind.budget, kind.positive_fraction)

    def _normalized(
        self, samples: Samples, weighed: Weighed, class_loss: ClassLoss, box_loss: BoxLoss
    ) -> tuple[Tensor, Tensor]:
        """The two terms; the normalizer of each may ask for the other, not both of them."""
        self._set_values(samples, weighed, class_loss, box_loss)
        class_values, box_values = samples.weights * weighed.class_values, weighed.box_values
        return (
            normalized(class_values, samples.image, samples.class_normalizer()),
            normalized(box_values, samples.image[samples.positive], samples.box_normalizer()),
        )

    def _set_values(
        self, samples: Samples, weighed: Weighed, class_loss: ClassLoss, box_loss: BoxLoss
    ) -> None:
        """Show the samples both losses and their normalizers; a weigher sees those without it."""
        samples.class_values = (samples.weights * weighed.class_values).detach()
        samples.box_values = weighed.box_values.detach()
        # Each is computed once, also where the other one asks for it.
        samples.class_normalizer = Once(partial(class_loss.normalizer, samples))
        samples.box_normalizer = Once(partial(box_loss.normalizer, samples))
        if (own := weighed.normalizer) is not None:
            samples.class_normalizer = samples.box_normalizer = lambda: own

    def _with_all_parameters(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Attach parameters that a batch without positives leaves unused.

        ``DistributedDataParallel`` waits for the gradient of each parameter in every process.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        if parameters:
            first = next(iter(terms))
            terms[first] = terms[first] + 0.0 * sum(p.sum() for p in parameters)
        return terms

    def _outputs(self, boxes: Tensor, preview: Head, rows: Tensor) -> Outputs:
        """What an assigner sees of some rows: scores, and the decoded boxes of all columns."""
        logits, deltas = preview(rows)
        repeated = boxes[rows].repeat_interleave(deltas.shape[1], 0)
        decoded = self.box_coder.decode_single(deltas.flatten(0, 1), repeated)
        return Outputs(self.class_loss.scores(logits), decoded.unflatten(0, deltas.shape[:2]))

    def _samples(
        self,
        assigned: Assigned,
        rows: Tensor,
        weights: Tensor,
        logits: Tensor,
        deltas: Tensor,
        positive: Tensor | None = None,
    ) -> Samples:
        labels = assigned.labels[rows]
        if positive is None:
            positive = torch.where(labels > 0)[0]
        positive_rows = rows[positive]
        boxes = assigned.boxes[positive_rows]
        objects = assigned.gt_boxes[assigned.gt[positive_rows]]
        return Samples(
            logits=logits,
            labels=labels,
            weights=weights,
            positive=positive,
            deltas=deltas_of_label(deltas[positive], labels[positive]),
            targets=self.box_coder.encode_single(objects, boxes),
            objects=objects,
            decode=lambda given: self.box_coder.decode_single(given, boxes),
            scores=self.class_loss.scores,
            boxes=assigned.boxes[rows],
            ious=assigned.ious[rows],
            image=assigned.image[rows],
            num_images=len(assigned.sizes) - assigned.placeholders,
            soft_targets=_at(assigned.soft_targets, rows),
            assigner_weights=_at(assigned.weights, rows),
            generator=self._generator(logits.device),
            total=self.exchange.total,
            step_total=self.exchange.step_total,
            gather=self.exchange.gather,
        )

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if self.seed is None:
            return None
        return torch.Generator(device).manual_seed(self.seed)


class Once:
    """A normalizer that is computed when it is first asked for (``torch.compile`` knows no cache).

    Args:
        compute: () -> the normalizer.
    """

    def __init__(self, compute: Callable[[], float | Tensor]) -> None:
        self.compute = compute
        self.value: float | Tensor | None = None

    def __call__(self) -> float | Tensor:
        """The normalizer."""
        if self.value is None:
            self.value = self.compute()
        return self.value


class Kept(NamedTuple):
    """The candidates that a sampler kept.

    Attributes:
        rows: [K] of the candidates, ascending.
        weights: [K] > 0.
        positive: [P] rows of the positives among the K.
        sizes: K of each image.
    """

    rows: Tensor
    weights: Tensor
    positive: Tensor
    sizes: Sequence[int]


class Sites(nn.ModuleDict):
    """The sites of a detector by name, in the order in which the network meets them."""

    if TYPE_CHECKING:

        def __getitem__(self, key: str) -> Site: ...
        def values(self) -> ValuesView[Site]: ...
        def items(self) -> ItemsView[str, Site]: ...


def ask_counted(labels: Tensor) -> Callable[[], list[Tensor]]:
    """Of [K] labels: the rows that are not ignored, and those of positives; see ``ask_rows``."""
    return ask_rows(labels >= 0, labels > 0)


def usual_assigner(kind: str) -> Assigner:
    """torchvision's assigner at a kind of site."""
    usual = KINDS[kind]
    return MaxIoU(usual.high, usual.low, usual.keep_best)


def _at(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def deltas_of_label(deltas: Tensor, labels: Tensor) -> Tensor:
    """[K, D, 4] deltas, [K] labels -> [K, 4]: those of the label, or the only ones."""
    column = labels if deltas.shape[1] > 1 else torch.zeros_like(labels)
    return deltas[torch.arange(len(deltas), device=deltas.device), column]


def stack_candidates(
    boxes: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    labels: Sequence[Tensor],
    **levels: Any,
) -> Unassigned:
    """The candidates of a batch and its objects, on the candidates' device.

    Args:
        boxes: [N_i, 4] for each image.
        targets: of each image: "boxes" [G_i, 4] and, where it has any, "ignore" areas [J_i, 4].
        labels: [G_i] the label of each object at this site, above 0.
        levels: ``level`` and ``strides`` of ``Unassigned``.
    """
    objects = [target["boxes"].to(boxes[0], non_blocking=True) for target in targets]
    ignore = [
        target.get("ignore", own[:0]).to(own, non_blocking=True)
        for target, own in zip(targets, boxes, strict=True)
    ]
    labels = [label.to(boxes[0].device, non_blocking=True) for label in labels]
    return Unassigned(boxes, objects, labels, ignore, **levels)


def site_generators(
    targets: Sequence[dict[str, Tensor]], site: int, device: torch.device
) -> list[torch.Generator] | None:
    """A random generator for every image, from its target's seed and the site; None without seeds.

    An image's draws at a site then depend on nothing else in the batch, and draws at one site do
    not shift the draws at another.
    """
    if not all("seed" in target for target in targets):
        return None
    pair, within = divmod(site, 2)
    offset = within + pair * SEED_STEP
    seeds = [(2 * int(target["seed"]) + offset) % 2**63 for target in targets]
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]
