"""Augmentations: each function returns one preset, which is called as `transform(image, target)`.

A preset takes a uint8 image [3, H, W] and a target of `DetectionDataset`, and returns the same
types. It draws from torch's global random generator alone. Ignored areas are transformed like
objects.
"""

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from frcnn.data.dataset import Target

# About the mean of ImageNet. Normalization turns it into 0, the value of padding.
FILL = {tv_tensors.Image: (124, 116, 104)}


def none() -> None:
    """No augmentation."""
    return None


def flip() -> v2.Compose:
    """Horizontal flip with probability 0.5."""
    return _preset(v2.RandomHorizontalFlip(0.5))


def flip_color() -> v2.Compose:
    """`flip`, then random brightness, contrast, saturation, hue and order of channels."""
    return _preset(v2.RandomHorizontalFlip(0.5), v2.RandomPhotometricDistort(p=0.5))


def scale_jitter() -> v2.Compose:
    """`flip`, then random zoom out (smaller objects) and random crop (larger objects).

    Zoom out places the image on a larger canvas. A crop keeps the objects whose centre is inside.
    Both change the size and the aspect ratio of the image.
    """
    return _preset(
        v2.RandomHorizontalFlip(0.5),
        v2.RandomZoomOut(FILL, side_range=(1.0, 2.0), p=0.4),
        _SafeCrop(min_scale=0.4, trials=20),
        v2.SanitizeBoundingBoxes(labels_getter=_labels),
    )


def _preset(*steps: nn.Module) -> v2.Compose:
    return v2.Compose([_JoinIgnored(), *steps, _SplitIgnored()])


def _labels(sample: tuple[Tensor, Target]) -> Tensor:
    return sample[1]["labels"]


class _SafeCrop(v2.RandomIoUCrop):
    """Does not crop an image that is so small that a crop could have no pixel."""

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        if min(image.shape[-2:]) * self.min_scale < 1:
            return image, target
        return super().forward(image, target)


class _JoinIgnored(nn.Module):
    """Joins objects and ignored areas into one set of boxes; ignored areas get label 0.

    torchvision's transforms filter only one `BoundingBoxes` per sample.
    """

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        boxes = torch.cat([target["boxes"], target["ignore"]])
        labels = torch.cat(
            [target["labels"], torch.zeros(len(target["ignore"]), dtype=torch.int64)]
        )
        size = image.shape[-2:]
        joined = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        others = {key: target[key] for key in target.keys() - {"boxes", "ignore", "labels"}}
        return tv_tensors.Image(image), {**others, "boxes": joined, "labels": labels}


class _SplitIgnored(nn.Module):
    """The inverse of `_JoinIgnored`; returns plain tensors."""

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        boxes, labels = target["boxes"].as_subclass(Tensor), target["labels"]
        parts = {"boxes": boxes[labels > 0], "labels": labels[labels > 0]}
        parts["ignore"] = boxes[labels == 0]
        return image.as_subclass(Tensor), {**target, **parts}
