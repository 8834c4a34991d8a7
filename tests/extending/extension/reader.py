"""A data set out of arrays: a bright square on each dark image."""

import numpy as np
import torch
from torch import Tensor

from frcnn.data import DetectionDataset, Problems
from frcnn.data.records import Classes, Images, Objects


def squares(split: str, count: int) -> DetectionDataset:
    """``count`` images of 64x48 pixels."""
    corner = np.arange(count) % 20

    def load(index: int) -> Tensor:
        image = torch.zeros(3, 48, 64, dtype=torch.uint8)
        image[:, 10:30, corner[index] : corner[index] + 20] = 200
        return image

    boxes = np.stack([corner, 0 * corner + 10, corner + 20, 0 * corner + 30], 1)
    files = np.array([f"{split}{index}" for index in range(count)])
    sizes = np.full(count, 64, np.int32), np.full(count, 48, np.int32)
    objects = Objects(
        offsets=np.arange(count + 1, dtype=np.int64),
        boxes=boxes.astype(np.float32),
        labels=np.ones(count, np.int64),
        ignore=np.zeros(count, bool),
        areas=np.full(count, 400, np.float32),
    )
    images = Images(list(range(count)), files, *sizes)
    return DetectionDataset(load, images, objects, Classes(["square"], [1]), Problems())
