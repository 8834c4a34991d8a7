"""How a model covers a data set: as it is configured, and with the suggested values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchvision.models.detection.anchor_utils import AnchorGenerator

from frcnn.build import detector
from frcnn.data import DetectionDataset
from frcnn.data.image_size import image_size
from frcnn.data.objects import Objects
from frcnn.errors import ConfigError
from frcnn.survey.anchors import (
    Coverage,
    View,
    cells_of,
    coverage,
    generator_of,
    views_of,
)
from frcnn.survey.suggest import NOT_REACHED, anchor_sizes

WEIGHTS = ("weights", "weights_backbone")  # change no anchor


@dataclass(frozen=True)
class Setting:
    """An image size and anchors.

    Attributes:
        override: what sets them on a command line; empty for the model as it is configured.
        min_size, max_size: in pixels; of several ``min_size`` the last, which evaluation uses.
        generator: of the anchors.
        views: how the model sees the images, by image size.
        coverage: the best anchor of every object.
    """

    override: str
    min_size: int
    max_size: int
    generator: AnchorGenerator
    views: list[View]
    coverage: Coverage


def settings(
    model: Mapping[str, Any], data: DetectionDataset, objects: Objects
) -> tuple[list[Setting], list[str]]:
    """The model as configured, then with what is suggested.

    Anchors are suggested at the present image size and at the suggested one. No suggestion leaves
    more objects without an anchor of IoU 0.5 than the model as configured.

    Args:
        model: the configuration's node.

    Returns:
        The settings, and a sentence for each change that is not suggested.
    """
    found, notes = with_anchors(model, {}, data, objects)
    now, size = found[0], image_size(data.widths, data.heights, objects)
    if size == (now.min_size, now.max_size):
        return found, notes
    changes = dict(zip(("min_size", "max_size"), size, strict=True))
    more, _ = with_anchors(model, changes, data, objects)
    if more[-1].coverage.below(NOT_REACHED) <= now.coverage.below(NOT_REACHED):
        return found + more, notes
    worse = f"No image size is suggested: `{more[-1].override}` leaves more objects below IoU 0.5."
    return found, [*notes, worse]


def with_anchors(
    model: Mapping[str, Any], changes: dict[str, Any], data: DetectionDataset, objects: Objects
) -> tuple[list[Setting], list[str]]:
    """The model with some changes, then with suggested anchors too."""
    found = measured(model, changes, data, objects)
    sizes = anchor_sizes(found.generator, found.views, objects)
    if sizes is None:
        return [found], []
    try:
        changes = changes | {"anchor_sizes": sizes}
        better = measured(model, changes, data, objects, found.views)
    except ConfigError as error:  # a network whose anchors are fixed
        return [found], [f"No anchor sizes are suggested. {error}."]
    return [found, better], []


def measured(
    model: Mapping[str, Any],
    changes: Mapping[str, Any],
    data: DetectionDataset,
    objects: Objects,
    views: list[View] | None = None,
) -> Setting:
    """Build the model with some changes of its node, and compare its anchors with the objects.

    Args:
        views: where they are known; they depend on the image size, not on the anchors.
    """
    node = {**model, **changes, **dict.fromkeys(set(WEIGHTS) & set(model))}
    built = detector({"model": node}, data.num_classes)
    generator, views = generator_of(built), views or views_of(built, data, objects)
    override = " ".join(f"model.{key}={value}" for key, value in changes.items())
    return Setting(
        override.replace(", ", ","),
        built.transform.min_size[-1],
        built.transform.max_size,
        generator,
        views,
        coverage(views, cells_of(generator), objects),
    )
