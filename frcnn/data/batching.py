"""Batches of images of similar shape, in an order that depends on (seed, epoch) alone."""

import math
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frcnn.data.dataset import Target
from frcnn.data.order import Order
from frcnn.data.workers import SignalSafeLoader, TracedDataset, start_worker

# (epoch, index), and for a repeated image how often it came before in the epoch.
Key = tuple[int, ...]
Batch = tuple[list[Tensor], list[Target]]


class AspectGroupedBatches:
    """Batch sampler that yields lists of keys (epoch, index), as many per epoch as images.

    A batch has only wide or only tall images. A mixed batch would be padded to a square, with up
    to twice the pixels. The only state is the position: a run resumes by
    `set_position(epoch, batches_done)`.

    Args:
        aspect_ratios: width / height of each image [I].
        batch_size: images per batch over all processes; the last batch of each shape may have
            fewer.
        seed: 0 or above.
        rank, size: rank of this process and number of processes. They share each batch as evenly
            as possible. If a batch has fewer images than processes, some get an empty list.
        order: which images an epoch has; None = each once, shuffled. An image that comes again in
            an epoch has a third number in its key, and so draws of its own.
    """

    def __init__(
        self,
        aspect_ratios: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        order: Order | None = None,
    ) -> None:
        wide = np.asarray(aspect_ratios) >= 1
        self.groups = [np.flatnonzero(wide), np.flatnonzero(~wide)]
        self.batch_size = batch_size
        self.seed = seed
        self.order = order
        self.rank, self.size = rank, size
        self.set_position(0, 0)

    def set_position(self, epoch: int, skip_batches: int = 0) -> None:
        """Make each following `iter` yield the batches of `epoch` after the first `skip_batches`.

        The position stays until the next call of this method. It must not move by itself: a loader
        with workers calls `iter` twice for its first epoch.
        """
        self.epoch, self.skip_batches = epoch, skip_batches

    def batches(self, epoch: int) -> list[list[Key]]:
        """All batches of an epoch in order, each with the images of all processes."""
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for group in self.groups:
            images = self.order(group, self.seed, epoch) if self.order else rng.permutation(group)
            keys = _keys(epoch, images.tolist())
            starts = range(0, len(keys), self.batch_size)
            batches += [keys[start : start + self.batch_size] for start in starts]
        return [batches[position] for position in rng.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[Key]]:
        remaining = self.batches(self.epoch)[self.skip_batches :]
        return (batch[self.rank :: self.size] for batch in remaining)

    def __len__(self) -> int:
        """Number of batches per epoch; the position does not change it."""
        return sum(math.ceil(len(group) / self.batch_size) for group in self.groups)


def _keys(epoch: int, images: list[int]) -> list[Key]:
    before: Counter[int] = Counter()
    keys: list[Key] = []
    for index in images:
        keys.append((epoch, index, before[index]) if before[index] else (epoch, index))
        before[index] += 1
    return keys


def collate(batch: list[tuple[Tensor, Target]]) -> Batch:
    """The images and targets as two lists; images are not stacked because their sizes differ."""
    return [image for image, _ in batch], [target for _, target in batch]


def make_loader(dataset: Dataset, batches: Iterable[list], workers: int) -> DataLoader:
    """Loader of (list of images, list of targets).

    Args:
        batches: iterable of lists of the data set's keys or indices, e.g. `AspectGroupedBatches`.
        workers: number of worker processes, which live for all epochs; 0 = load in this process.
    """
    return SignalSafeLoader(
        TracedDataset(dataset, workers),
        batch_sampler=batches,
        num_workers=workers,
        # Python's default start method: joblib sets another one in its workers.
        multiprocessing_context=multiprocessing.get_all_start_methods()[0] if workers else None,
        collate_fn=collate,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        # Without it each `iter` draws from the global generator, and a resumed run would differ.
        generator=torch.Generator(),
    )


def prepare(images: list[Tensor], device: torch.device) -> list[Tensor]:
    """uint8 images -> float in 0..1 on the device.

    Targets stay where they are: the detector takes along what it needs, and what is done with
    boxes before that would make a GPU's host wait.
    """
    return [image.to(device, non_blocking=True).float().div_(255) for image in images]


def empty_batch() -> Batch:
    """A batch for a process that has no image of the batch: a small image, ignored as a whole.

    It gives no samples, and its target says that it is no image of the batch ("placeholder"). The
    process still needs a forward pass, because all processes exchange numbers in each one.
    """
    whole_area = torch.tensor([[-1e6, -1e6, 1e6, 1e6]])
    target: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    target |= {"ignore": whole_area, "image_id": -1, "seed": 0, "placeholder": True}
    return [torch.zeros(3, 64, 64, dtype=torch.uint8)], [target]
