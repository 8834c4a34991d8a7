"""Data sets for detection: readers, augmentation, batches."""

from frcnn.data.batching import (
    AspectGroupedBatches,
    Batch,
    collate,
    empty_batch,
    make_loader,
    prepare,
)
from frcnn.data.check import (
    check_images,
    count_copies,
    count_shared_images,
    drop_unusable_images,
    unlisted_files,
)
from frcnn.data.coco import coco, coco2017
from frcnn.data.dataset import DetectionDataset
from frcnn.data.lvis import lvis
from frcnn.data.order import image_order
from frcnn.data.problems import Problems
from frcnn.data.roboflow import roboflow
from frcnn.data.shapes import shapes
from frcnn.data.voc import voc
from frcnn.data.yolo import yolo

__all__ = [
    "AspectGroupedBatches",
    "Batch",
    "DetectionDataset",
    "Problems",
    "check_images",
    "coco",
    "coco2017",
    "collate",
    "count_copies",
    "count_shared_images",
    "drop_unusable_images",
    "empty_batch",
    "image_order",
    "lvis",
    "make_loader",
    "prepare",
    "roboflow",
    "shapes",
    "unlisted_files",
    "voc",
    "yolo",
]
