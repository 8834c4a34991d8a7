"""Assigners: candidate boxes and objects -> labels. One paper per file."""

from frcnn.sites.assigners.atss import ATSS
from frcnn.sites.assigners.contract import (
    Assigned,
    Assigner,
    Outputs,
    Unassigned,
    assemble,
    ignore_background_inside,
)
from frcnn.sites.assigners.max_iou import MaxIoU

__all__ = [
    "ATSS",
    "Assigned",
    "Assigner",
    "MaxIoU",
    "Outputs",
    "Unassigned",
    "assemble",
    "ignore_background_inside",
]
