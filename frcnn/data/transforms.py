"""Augmentations, one preset a function; called as `transform(image, target)`.

They see uint8 images [3, H, W] and the targets of `DetectionDataset`, return the same, and draw
from torch's random generator alone. Ignored areas move with the image like objects do.
"""

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from frcnn.data.dataset import Target

# About the mean of ImageNet, which normalisation turns into 0, the value of padding.
FILL = {tv_tensors.Image: (124, 116, 104)}


def none() -> None:
    """Images as they are."""
    return None


def flip() -> v2.Compose:
    """Left and right swapped in every second image."""
    return _preset(v2.RandomHorizontalFlip(0.5))


def flip_color() -> v2.Compose:
    """`flip`, then brightness, contrast, saturation, hue and order of channels at random."""
    return _preset(v2.RandomHorizontalFlip(0.5), v2.RandomPhotometricDistort(p=0.5))


def scale_jitter() -> v2.Compose:
    """`flip`, with objects made smaller (image set into a larger frame) or larger (a crop).

    The crop keeps objects whose centre it holds; images change their size and shape.
    """
    return _preset(
        v2.RandomHorizontalFlip(0.5),
        v2.RandomZoomOut(FILL, side_range=(1.0, 2.0), p=0.4),
        _Crop(min_scale=0.4, trials=20),
        v2.SanitizeBoundingBoxes(labels_getter=_labels),
    )


def _preset(*steps: nn.Module) -> v2.Compose:
    return v2.Compose([_Joined(), *steps, _Parted()])


def _labels(sample: tuple[Tensor, Target]) -> Tensor:
    return sample[1]["labels"]


class _Crop(v2.RandomIoUCrop):
    """Leaves an image alone of which the smallest crop would have no pixel."""

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        if min(image.shape[-2:]) * self.min_scale < 1:
            return image, target
        return super().forward(image, target)


class _Joined(nn.Module):
    """Objects and ignored areas as one set of boxes, the latter with label 0.

    Transforms look for one `BoundingBoxes` only, and would leave a second one unfiltered.
    """

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        boxes = torch.cat([target["boxes"], target["ignore"]])
        labels = torch.cat(
            [target["labels"], torch.zeros(len(target["ignore"]), dtype=torch.int64)]
        )
        size = image.shape[-2:]
        joined = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        rest = {key: target[key] for key in target.keys() - {"boxes", "ignore", "labels"}}
        return tv_tensors.Image(image), {**rest, "boxes": joined, "labels": labels}


class _Parted(nn.Module):
    """The inverse of `_Joined`, back to plain tensors."""

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        boxes, labels = target["boxes"].as_subclass(Tensor), target["labels"]
        parts = {"boxes": boxes[labels > 0], "labels": labels[labels > 0]}
        parts["ignore"] = boxes[labels == 0]
        return image.as_subclass(Tensor), {**target, **parts}
