"""The region proposal network, trained through candidates -> sampler -> losses.

Shape letters: N anchors of the batch (images stacked, all levels).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from frcnn.model.matching import Matched, match_batch
from frcnn.model.site import Site, site_generators
from samplers import Prediction


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
        objectness, deltas = self.head(levels)
        anchors = self.anchor_generator(images, levels)
        sizes = [level[0].numel() for level in objectness]
        logits, deltas = concat_box_prediction_layers(objectness, deltas)
        logits, deltas = logits.flatten().float(), deltas.float()
        with torch.no_grad():
            decoded = self.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
            proposals, _ = self.filter_proposals(decoded, logits, images.image_sizes, sizes)
        if targets is None:
            return proposals, {}
        return proposals, self._losses(anchors, logits, deltas, targets)

    def _losses(
        self,
        anchors: Sequence[Tensor],
        logits: Tensor,
        deltas: Tensor,
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        labels = [torch.ones_like(target["labels"]) for target in targets]
        matched = match_batch(self.site.matcher, anchors, targets, labels)
        predict = partial(self._preview, matched, logits.detach(), deltas.detach())
        generators = site_generators(targets, 0, logits.device)
        rows, weights = self.site.draw(matched, predict, generators)
        class_term, box_term = self.site.losses(
            matched, rows, weights, two_columns(logits[rows]), deltas[rows][:, None]
        )
        return {"loss_objectness": class_term, "loss_rpn_box_reg": box_term}

    def _preview(
        self, matched: Matched, logits: Tensor, deltas: Tensor, rows: Tensor
    ) -> Prediction:
        """The dense forward has the answer already."""
        return self.site.prediction(matched, rows, two_columns(logits[rows]), deltas[rows][:, None])


def two_columns(logits: Tensor) -> Tensor:
    """[K] logits x of "object" -> [K, 2] logits [0, x], whose softmax is (1 - sigmoid, sigmoid)."""
    return torch.stack([torch.zeros_like(logits), logits], 1)
