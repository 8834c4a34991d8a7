"""The region proposal network, trained through candidates -> sampler -> losses.

Shape letters: N anchors of the batch (images stacked, all levels).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from frcnn.model.modes import no_graph
from frcnn.model.sparse_head import at_anchors, can_be_sparse
from frcnn.sites.assigners.max_iou import Matched, match_batch
from frcnn.sites.site import Site, site_generators
from samplers import Prediction

# Above this share of kept anchors one dense pass is cheaper than their neighbourhoods.
SPARSE_SHARE = 0.15


class SamplingRPN(RegionProposalNetwork):
    """torchvision's RPN, with the same parameters and proposals, and a site of its own.

    Given targets it returns the losses also in eval mode, so that a validation loss needs no
    second code path.
    """

    site: Site

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals [<= post_nms_top_n, 4] of every image, and the losses if there are targets."""
        levels = list(features.values())
        anchors = self.anchor_generator(images, levels)
        with no_graph(levels[0].device) if can_be_sparse(self.head) else nullcontext():
            logits, deltas, sizes = self._dense(levels)
        with torch.no_grad():
            decoded = self.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
            proposals, _ = self.filter_proposals(decoded, logits, images.image_sizes, sizes)
        if targets is None:
            return proposals, {}
        labels = [torch.ones_like(target["labels"]) for target in targets]
        matched = match_batch(self.site.matcher, anchors, targets, labels)
        predict = partial(self._preview, matched, logits.detach(), deltas.detach())
        generators = site_generators(targets, 0, logits.device)
        rows, weights = self.site.draw(matched, predict, generators)
        kept_logits, kept_deltas = self._kept(levels, logits, deltas, rows)
        class_term, box_term = self.site.losses(
            matched, rows, weights, two_columns(kept_logits), kept_deltas[:, None]
        )
        return proposals, {"loss_objectness": class_term, "loss_rpn_box_reg": box_term}

    def _dense(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[int]]:
        """[N] logits and [N, 4] deltas, float32, and the anchors of an image at each level."""
        objectness, deltas = self.head(levels)
        sizes = [level[0].numel() for level in objectness]
        logits, deltas = concat_box_prediction_layers(objectness, deltas)
        return logits.flatten().float(), deltas.float(), sizes

    def _kept(
        self, levels: Sequence[Tensor], logits: Tensor, deltas: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[K] logits and [K, 4] deltas of the kept anchors, with gradient."""
        # Without gradients wanted, the first pass is as good as another.
        if can_be_sparse(self.head) and torch.is_grad_enabled():
            if len(rows) < SPARSE_SHARE * len(logits):
                logits, deltas = at_anchors(self.head, levels, rows)
                return logits.float(), deltas.float()
            logits, deltas, _ = self._dense(levels)
        return logits[rows], deltas[rows]

    def _preview(
        self, matched: Matched, logits: Tensor, deltas: Tensor, rows: Tensor
    ) -> Prediction:
        """The dense pass has the answer already."""
        return self.site.prediction(matched, rows, two_columns(logits[rows]), deltas[rows][:, None])


def two_columns(logits: Tensor) -> Tensor:
    """[K] logits x of "object" -> [K, 2] logits [0, x], whose softmax is (1 - sigmoid, sigmoid)."""
    return torch.stack([torch.zeros_like(logits), logits], 1)
