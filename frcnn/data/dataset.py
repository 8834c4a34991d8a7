"""The data set every reader returns."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from frcnn.data.problems import Problems
from frcnn.data.records import Classes, Images, Objects
from frcnn.errors import UserError

Target = dict[str, Any]
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


class DetectionDataset(Dataset):
    """Images with boxes, as flat arrays; what is drawn depends on (seed, epoch, index) alone.

    Args:
        load: index -> uint8 image [3, H, W], RGB, of the size the arrays state.
        images, objects, classes: see `frcnn.data.records`; their fields become attributes here
            (image_ids, files, widths, heights, offsets, boxes, labels, ignore, areas,
            class_names, category_ids).
        problems: what was found wrong while reading.
        seed: of the augmentation, 0 or above.

    `transform` (None, or one of `frcnn.data.transforms`) may be set at any time before the
    loader's workers start.
    """

    def __init__(
        self,
        load: Callable[[int], Tensor],
        images: Images,
        objects: Objects,
        classes: Classes,
        problems: Problems,
        seed: int = 0,
    ) -> None:
        self.load = load
        self.image_ids, self.files, self.widths, self.heights = images
        self.offsets, self.boxes, self.labels, self.ignore, self.areas = objects
        self.class_names, self.category_ids = classes
        self.problems = problems
        self.seed = seed
        self.transform: Transform | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes with the background counted, C + 1."""
        return len(self.class_names) + 1

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Target]:
        """Image uint8 [3, H, W] and its target; `key` is (epoch, index), or index for epoch 0.

        Target: boxes float32 [G, 4] xyxy pixels and labels int64 [G] in 1..C, without ignored
        objects; ignore float32 [J, 4], areas that are neither object nor background; image_id,
        the index; seed in [0, 2**31), of (data set seed, epoch, index).

        Raises:
            UserError: the image cannot be read or is not of the size its annotation states.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = range(len(self))[index]
        image, target = self._image(index), self._target(index, epoch)
        if self.transform is None:
            return image, target
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would reseed the GPU as well, which fork_rng leaves open.
            torch.default_generator.manual_seed(target["seed"])
            return self.transform(image, target)

    def describe(self, index: int) -> str:
        """File and id of an image, for messages."""
        return f"{self.files[index]} (image id {self.image_ids[index]})"

    def keep(self, wanted: np.ndarray) -> None:
        """Leave out images with their objects; wanted bool [I]."""
        counts = np.diff(self.offsets)
        objects = np.repeat(wanted, counts)
        columns = self.boxes, self.labels, self.ignore, self.areas
        self.boxes, self.labels, self.ignore, self.areas = (c[objects] for c in columns)
        self.offsets = np.concatenate([[0], np.cumsum(counts[wanted])]).astype(np.int64)
        self.files, self.widths = self.files[wanted], self.widths[wanted]
        self.heights = self.heights[wanted]
        self.image_ids = [self.image_ids[row] for row in np.flatnonzero(wanted).tolist()]

    def ground_truth(self) -> dict[str, list[dict]]:
        """COCO-format ground truth: image id = index, category id = label, ids from 1.

        Made from the arrays as read, so an augmentation never reaches an evaluation.
        """
        image = np.repeat(np.arange(len(self)), np.diff(self.offsets)).tolist()
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        columns = image, self.labels.tolist(), boxes.tolist(), self.areas.tolist()
        names = "id", "image_id", "category_id", "bbox", "area", "iscrowd"
        rows = zip(
            range(1, len(image) + 1), *columns, self.ignore.astype(int).tolist(), strict=True
        )
        return {
            "images": self._image_rows(),
            "annotations": [dict(zip(names, row, strict=True)) for row in rows],
            "categories": [{"id": k, "name": n} for k, n in enumerate(self.class_names, start=1)],
        }

    def class_frequencies(self) -> np.ndarray:
        """int64 [C]: objects of each class, ignored ones not counted."""
        return np.bincount(self.labels[~self.ignore] - 1, minlength=len(self.class_names))

    def image_shares(self) -> np.ndarray:
        """float64 [C]: share of the images that show a class, ignored objects not counted."""
        image = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        shown = np.zeros((len(self), len(self.class_names)), dtype=bool)
        shown[image[~self.ignore], self.labels[~self.ignore] - 1] = True
        return shown.mean(axis=0)

    def aspect_ratios(self) -> np.ndarray:
        """float64 [I]: width / height."""
        return self.widths / self.heights

    def _image(self, index: int) -> Tensor:
        image = self.load(index)
        height, width = image.shape[1:]
        if (width, height) != (self.widths[index], self.heights[index]):
            raise UserError(
                f"{self.files[index]} (image {self.image_ids[index]}): "
                f"is {width}x{height} but its annotation says "
                f"{self.widths[index]}x{self.heights[index]}; correct the annotation's size"
            )
        return image

    def _target(self, index: int, epoch: int) -> Target:
        rows = slice(*self.offsets[index : index + 2].tolist())
        boxes, ignore = self.boxes[rows], self.ignore[rows]
        return {
            "boxes": torch.from_numpy(boxes[~ignore]),
            "labels": torch.from_numpy(self.labels[rows][~ignore]),
            "ignore": torch.from_numpy(boxes[ignore]),
            "image_id": index,
            "seed": sample_seed(self.seed, epoch, index),
        }

    def _image_rows(self) -> list[dict]:
        columns = self.files.tolist(), self.widths.tolist(), self.heights.tolist()
        return [
            {"id": index, "file_name": file, "width": width, "height": height}
            for index, (file, width, height) in enumerate(zip(*columns, strict=True))
        ]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A number in [0, 2**31) that is the same on every machine and in every process."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0] >> 1)
