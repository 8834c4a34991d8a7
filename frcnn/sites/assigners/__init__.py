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
from frcnn.sites.assigners.dynamic_iou import DynamicIoU
from frcnn.sites.assigners.max_iou import MaxIoU
from frcnn.sites.assigners.sim_ota import SimOTA
from frcnn.sites.assigners.task_aligned import TaskAligned
from frcnn.sites.assigners.top_n import TopN

__all__ = [
    "ATSS",
    "Assigned",
    "Assigner",
    "DynamicIoU",
    "MaxIoU",
    "Outputs",
    "SimOTA",
    "TaskAligned",
    "TopN",
    "Unassigned",
    "assemble",
    "ignore_background_inside",
]
