"""The box coder (Faster R-CNN, arXiv 1506.01497, eq. 2)."""

import torch
from torch import Tensor
from torchvision.models.detection import _utils
from torchvision.models.detection._utils import encode_boxes


class BoxCoder(_utils.BoxCoder):
    """torchvision's coder, with equal results, which does not make the host wait for a GPU.

    torchvision copies its constants to the GPU at each call, and the host waits for each copy.
    """

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """[K, 4] boxes and [K, 4] boxes that they are seen from, xyxy -> [K, 4] deltas."""
        return encode_boxes(reference_boxes, proposals, self.weights)

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """[K, 4 D] deltas of D columns, [K, 4] boxes xyxy -> [K, 4 D] boxes xyxy."""
        boxes = boxes.to(rel_codes.dtype)
        size = boxes[:, 2:] - boxes[:, :2]
        center = boxes[:, :2] + 0.5 * size
        deltas = rel_codes.unflatten(1, (-1, 4))
        pairs = zip(deltas.unbind(2), self.weights, strict=True)
        dx, dy, dw, dh = (delta / weight for delta, weight in pairs)
        edges = []
        for axis, (move, stretch) in enumerate(((dx, dw), (dy, dh))):
            stretch = stretch.clamp(max=self.bbox_xform_clip)
            middle = move * size[:, axis, None] + center[:, axis, None]
            half = 0.5 * (stretch.exp() * size[:, axis, None])
            edges.append((middle - half, middle + half))
        (left, right), (top, bottom) = edges
        return torch.stack((left, top, right, bottom), 2).flatten(1)
