"""The data set that every reader returns."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from frcnn.data.federated import Federated
from frcnn.data.problems import Problems
from frcnn.data.records import Classes, Images, Objects, ignored_note
from frcnn.errors import UserError

Target = dict[str, Any]
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


class DetectionDataset(Dataset):
    """Images with boxes, stored as flat arrays.

    The random augmentation of an image depends on (seed, epoch, index) alone.

    Args:
        load: index -> uint8 image [3, H, W], RGB, of the size that `images` states.
        images, objects, classes: see `frcnn.data.records`; their fields become attributes here
            (image_ids, files, widths, heights, offsets, boxes, labels, ignore, areas,
            class_names, category_ids).
        problems: the problems found while reading.
        seed: seed of the augmentation, 0 or above.

    Attributes:
        federated: which classes each image was searched for, where that is not all of them.
        transform: augmentation, None or a preset of `frcnn.data.transforms`. Set it before the
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
        self.federated: Federated | None = None
        self.transform: Transform | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes including the background, C + 1."""
        return len(self.class_names) + 1

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | tuple[int, ...]) -> tuple[Tensor, Target]:
        """Image uint8 [3, H, W] and its target; `key` is (epoch, index), or index for epoch 0.

        A third number tells the repeats of an image within an epoch apart.

        The target is a dict: boxes float32 [G, 4] xyxy pixels and labels int64 [G] in 1..C of the
        objects that are not ignored; ignore float32 [J, 4], areas that are neither object nor
        background; image_id, the index; seed in [0, 2**31), derived from (data set seed, epoch,
        index).

        Raises:
            UserError: the image cannot be read, or does not have the size that its annotation
                states.
        """
        epoch, index, *repeat = key if isinstance(key, tuple) else (0, key)
        index = range(len(self))[index]
        image, target = self._image(index), self._target(index, epoch, *repeat)
        if self.transform is None:
            return image, target
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would also seed the GPU, which this fork_rng does not
            # restore.
            torch.default_generator.manual_seed(target["seed"])
            return self.transform(image, target)

    def describe(self, index: int) -> str:
        """File and original id of an image, for messages."""
        return f"{self.files[index]} (image id {self.image_ids[index]})"

    def keep(self, mask: np.ndarray) -> None:
        """Keep only the images where the bool mask [I] is True, and their objects."""
        if self.federated is not None:
            self.federated = self.federated.kept(mask)
        counts = np.diff(self.offsets)
        objects = np.repeat(mask, counts)
        columns = self.boxes, self.labels, self.ignore, self.areas
        self.boxes, self.labels, self.ignore, self.areas = (c[objects] for c in columns)
        self.offsets = np.concatenate([[0], np.cumsum(counts[mask])]).astype(np.int64)
        self.files, self.widths = self.files[mask], self.widths[mask]
        self.heights = self.heights[mask]
        self.image_ids = [self.image_ids[row] for row in np.flatnonzero(mask).tolist()]

    def warnings(self) -> list[str]:
        """What a command says of the data: the problems, and the number of ignored objects."""
        lines = [self.problems.summary()] if self.problems else []
        if self.ignore.any():
            left = ", and no other object is left" if self.ignore.all() else ""
            lines.append(f"{ignored_note(self.ignore)}{left}")
        return lines

    def ground_truth(self) -> dict[str, Any]:
        """Ground truth in COCO's format: image id = index, category id = label, ids from 1.

        Federated data also have LVIS's keys of images and categories.

        It uses the arrays as read, so augmentation does not affect an evaluation.
        """
        image = np.repeat(np.arange(len(self)), np.diff(self.offsets)).tolist()
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        columns = image, self.labels.tolist(), boxes.tolist(), self.areas.tolist()
        names = "id", "image_id", "category_id", "bbox", "area", "iscrowd"
        rows = zip(
            range(1, len(image) + 1), *columns, self.ignore.astype(int).tolist(), strict=True
        )
        truth = {
            "images": self._image_rows(),
            "annotations": [dict(zip(names, row, strict=True)) for row in rows],
            "categories": [{"id": k, "name": n} for k, n in enumerate(self.class_names, start=1)],
        }
        return truth if self.federated is None else self.federated.add_to(truth)

    def class_frequencies(self) -> np.ndarray:
        """int64 [C]: number of objects per class; ignored objects do not count."""
        return np.bincount(self.labels[~self.ignore] - 1, minlength=len(self.class_names))

    def image_shares(self) -> np.ndarray:
        """float64 [C] in [0, 1]: share of images with the class; ignored objects do not count."""
        return self.class_images() / len(self)

    def class_images(self) -> np.ndarray:
        """int64 [C]: number of images with the class; ignored objects do not count."""
        image = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        pairs = np.stack([image, self.labels - 1], axis=1)[~self.ignore]
        return np.bincount(np.unique(pairs, axis=0)[:, 1], minlength=len(self.class_names))

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

    def _target(self, index: int, epoch: int, *repeat: int) -> Target:
        rows = slice(*self.offsets[index : index + 2].tolist())
        boxes, ignore = self.boxes[rows], self.ignore[rows]
        return {
            "boxes": torch.from_numpy(boxes[~ignore]),
            "labels": torch.from_numpy(self.labels[rows][~ignore]),
            "ignore": torch.from_numpy(boxes[ignore]),
            "image_id": index,
            "seed": sample_seed(self.seed, epoch, index, *repeat),
        }

    def _image_rows(self) -> list[dict]:
        columns = self.files.tolist(), self.widths.tolist(), self.heights.tolist()
        return [
            {"id": index, "file_name": file, "width": width, "height": height}
            for index, (file, width, height) in enumerate(zip(*columns, strict=True))
        ]


def sample_seed(seed: int, epoch: int, index: int, *repeat: int) -> int:
    """A seed in [0, 2**31), the same on every machine and in every process."""
    return int(np.random.SeedSequence((seed, epoch, index, *repeat)).generate_state(1)[0] >> 1)
