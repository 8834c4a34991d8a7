"""What every detector of this project is: torchvision's network, and its sites."""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from frcnn.model.modes import compile_methods
from frcnn.sites.site import Sites


@runtime_checkable
class HasParts(Protocol):
    """A module that knows which of its parts ``torch.compile`` can take."""

    def compile_parts(self, **options: Any) -> None: ...


class Detector(nn.Module):
    """A network of torchvision's with the same parameters, and a ``Site`` where it learns.

    In training mode ``detector(images, targets)`` returns the named loss terms, as torchvision's
    does. In eval mode ``detector(images)`` returns detections, and ``detector(images, targets)``
    the pair (detections, terms of the validation loss). A target has "boxes" [G, 4] xyxy pixels
    and "labels" [G] in 1..C, and may have "ignore" [J, 4], areas where background is no example,
    and "seed", from which the samplers draw for this image (without it they draw from torch's
    global generator).

    Attributes:
        predictor: prefix, or prefixes, of the parameters whose number depends on the classes.
        sites: by name, in the order in which the network meets them. Their parameters are the
            detector's; their states are not in ``state_dict``, whose names are torchvision's.
        initial_weights: the name or the file of the detector's weights that it started from; None
            for none.
    """

    initial_weights: str | None = None

    predictor: str | tuple[str, ...]
    sites: Sites
    backbone: nn.Module
    transform: "Transform"

    def compile_parts(self, **options: Any) -> None:
        """Let ``torch.compile`` take the backbone, the heads and the losses of all sites.

        Parameters keep their names. What is left is the work whose sizes depend on values:
        matching, sampling, suppression of overlapping boxes, and RoI pooling; and, on a CPU, the
        box head of a sampler with previews, whose products are reused. Torch finds by itself that
        the number of sampled rows differs from batch to batch: the second batch compiles anew.

        Args:
            options: of ``torch.compile``.
        """
        self.backbone.compile(**options)
        for module in self.modules():
            if module is not self and isinstance(module, HasParts):
                module.compile_parts(**options)
        for site in self.sites.values():
            compile_methods(site, "losses", **options)

    def eager_outputs(self, losses: dict[str, Tensor], detections: list[dict[str, Tensor]]) -> Any:
        """What ``forward`` returns (torchvision's hook)."""
        if self.training:
            return losses
        return (detections, losses) if losses else detections


class Transform(GeneralizedRCNNTransform):
    """torchvision's resizing, which also resizes the ignore areas.

    The mean and the deviation are copied to a GPU once, not once per image.
    """

    def normalize(self, image: Tensor) -> Tensor:
        """[3, H, W] minus the mean of each channel, divided by its standard deviation."""
        if not image.is_floating_point():
            return super().normalize(image)  # refuses it
        given = (*self.image_mean, *self.image_std, image.device, image.dtype)
        if self.__dict__.get("_given") != given:
            self._given = given
            # A validation may be the first to ask, and training must be able to use it.
            with torch.inference_mode(False):
                pair = torch.tensor([self.image_mean, self.image_std], dtype=torch.float64)
                self._statistics = pair.to(image)[:, :, None, None]
        mean, deviation = self._statistics
        return (image - mean) / deviation

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple:
        """Resize one [3, H, W] image and the boxes of its target."""
        before = list(image.shape[-2:])
        least = 1 + max(before) // self.max_size
        if min(before) < least:  # resizing would leave no pixel of so thin a strip
            size = [max(side, least) for side in before]
            image = F.interpolate(image[None], size)[0]
            if target is not None:
                target = target | {"boxes": resize_boxes(target["boxes"], before, size)}
        image, target = super().resize(image, target)
        if target is not None and "ignore" in target:
            target["ignore"] = resize_boxes(target["ignore"], before, list(image.shape[-2:]))
        return image, target
