"""The region proposal network, whose anchors are the candidates of a site.

Shape letters: N anchors of the batch (images stacked, all levels).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from frcnn.losses.samples import widened
from frcnn.model.anchors import anchor_levels, anchors_of
from frcnn.model.modes import compile_methods, no_graph
from frcnn.model.proposals import ProposalFilter
from frcnn.model.sparse_head import at_anchors, can_be_sparse
from frcnn.sites.site import Site, stack_candidates

# Above this share of kept anchors one dense pass is cheaper than their neighbourhoods.
SPARSE_SHARE = 0.15


class SamplingRPN(RegionProposalNetwork):
    """torchvision's RPN, with the same parameters and proposals, and a site.

    With targets it returns the losses in eval mode too, so that a validation loss needs no second
    code path.
    """

    site: Site

    def compile_parts(self, **options: Any) -> None:
        """Let ``torch.compile`` take the head and the decoding of its boxes; see ``Detector``."""
        compile_methods(self, "_dense", "_decoded", **options)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals [<= post_nms_top_n, 4] of every image, and the losses if there are targets."""
        levels = list(features.values())
        anchors = anchors_of(self.anchor_generator, images, levels)
        with no_graph(levels[0].device) if can_be_sparse(self.head) else nullcontext():
            logits, deltas, sizes = self._dense(levels)
        with torch.no_grad():
            decoded = self._decoded(deltas, anchors)
            logits_of_images = logits.detach().view(len(anchors), -1)
            ask = self._filter().ask
            proposals = ask(decoded, logits_of_images, images.image_sizes, sizes)
        if targets is None:
            return proposals(), {}
        labels = [torch.ones_like(target["labels"]) for target in targets]
        level, strides = anchor_levels(images, levels, sizes)
        candidates = stack_candidates(anchors, targets, labels, level=level, strides=strides)
        preview = partial(_at_rows, logits.detach(), deltas.detach())
        head = partial(self._kept, levels, logits, deltas)
        losses = self.site(candidates, preview, head, targets)
        return proposals(), losses  # read together with the site's draw

    def _filter(self) -> ProposalFilter:
        numbers = self.pre_nms_top_n(), self.post_nms_top_n()
        return ProposalFilter(*numbers, self.nms_thresh, self.score_thresh, self.min_size)

    def _dense(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[int]]:
        """[N] logits and [N, 4] deltas, float32 at least; anchors per image at each level."""
        objectness, deltas = self.head(levels)
        sizes = [level[0].numel() for level in objectness]
        logits, deltas = concat_box_prediction_layers(objectness, deltas)
        return widened(logits.flatten()), widened(deltas), sizes

    def _decoded(self, deltas: Tensor, anchors: list[Tensor]) -> Tensor:
        """[N, 4] deltas -> [I, N / I, 4] boxes of each image."""
        return self.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)

    def _kept(
        self, levels: Sequence[Tensor], logits: Tensor, deltas: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[K, 2] logits and [K, 1, 4] deltas of the kept anchors, with gradient."""
        # Without gradient the values of the dense pass are enough.
        if can_be_sparse(self.head) and torch.is_grad_enabled():
            if len(rows) < SPARSE_SHARE * len(logits):
                logits, deltas = at_anchors(self.head, levels, rows)
                return two_columns(widened(logits)), widened(deltas)[:, None]
            logits, deltas, _ = self._dense(levels)
        return _at_rows(logits, deltas, rows)


def _at_rows(logits: Tensor, deltas: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """[K, 2] logits and [K, 1, 4] deltas of some anchors, from the dense [N] and [N, 4]."""
    return two_columns(logits[rows]), deltas[rows][:, None]


def two_columns(logits: Tensor) -> Tensor:
    """[K] logits x of "object" -> [K, 2] logits [0, x], whose softmax is (1 - sigmoid, sigmoid)."""
    return torch.stack([torch.zeros_like(logits), logits], 1)
