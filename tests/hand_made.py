"""Candidates made by hand for the figures, and what a figure has drawn."""

from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

from experiments.figures.look import look
from experiments.figures.seen import Seen
from frcnn.evaluation.load import Trained
from frcnn.model import Detector

BUDGET = {"rpn": 16, "rcnn": 8}


def as_trained(detector: Detector) -> Trained:
    """A detector as from a checkpoint."""
    return Trained(detector.eval(), {}, [], [], torch.device("cpu"), torch.float32)


def seen_by(detector: Detector, images: list[Tensor], targets: list) -> dict[str, Seen]:
    """What ``look`` finds in one batch."""
    return look(
        as_trained(detector), [([(255 * image).byte() for image in images], targets)], BUDGET
    )


def hand_made(
    labels: list[int], picks: dict[str, list[float]] | None = None, **known: list
) -> Seen:
    """Candidates of these labels; of what is not told, the most ordinary."""
    zeros, whole = torch.zeros(len(labels)), torch.zeros(len(labels), dtype=torch.int64)
    positives = sum(label > 0 for label in labels)
    usual = {
        "ious": zeros,
        "image": whole,
        "place": torch.arange(len(labels)),
        "level": whole,
        "right": zeros[:, None] + 0.5,
        "object_score": zeros + 0.5,
        "loss": zeros,
        "class_loss": zeros,
        "errors": torch.zeros(positives, 4),
        "box_ious": torch.zeros(positives),
        "hlr": torch.arange(positives),
    }
    told = {name: torch.tensor(value) for name, value in {"labels": labels, **known}.items()}
    weights = {name: torch.tensor(value) for name, value in (picks or {}).items()}
    return Seen(**usual | told, picks=weights)


def lines(axes: Axes) -> dict[str, tuple[Tensor, Tensor]]:
    """Places and heights of each line by its name."""
    return {
        line.get_label(): tuple(torch.as_tensor(values).double() for values in line.get_data())
        for line in axes.lines
    }


def heights(axes: Axes, *rows: int) -> dict[str, list[float]]:
    """Of each line at some of its points."""
    return {name: [y[row].item() for row in rows] for name, (_, y) in lines(axes).items()}


def about(expected: dict[str, list[float]]) -> dict[str, Any]:
    """Equal but for rounding in the fifth digit."""
    return {name: pytest.approx(values, rel=1e-4) for name, values in expected.items()}


def dots(axes: Axes, name: str) -> dict[tuple[float, ...], float]:
    """The size of each dot of a name by its place."""
    (found,) = (some for some in axes.collections if some.get_label() == name)
    places = map(tuple, found.get_offsets().tolist())
    return dict(zip(places, found.get_sizes().tolist(), strict=True))
