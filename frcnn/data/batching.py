"""Batches of images of like shape, in an order that is a function of (seed, epoch)."""

import math
import multiprocessing
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frcnn.data.dataset import Target
from frcnn.data.workers import Loader, Watched, start_worker

Key = tuple[int, int]
Batch = tuple[list[Tensor], list[Target]]


class AspectGroupedBatches:
    """Batch sampler: keys (epoch, index), each image once an epoch, wide and tall never mixed.

    A mixed batch would be padded to a square, up to twice the pixels. The state is the position
    alone: a run resumes by `set_position(epoch, batches_done)`.

    Args:
        aspect_ratios: width / height of each image [I].
        batch_size: images a batch; the last one of either shape may hold fewer.
        seed: 0 or above.
        rank, size: this process of so many, which share out every batch as evenly as can be: a
            batch of fewer images than processes leaves some of them an empty list.
    """

    def __init__(
        self, aspect_ratios: np.ndarray, batch_size: int, seed: int, rank: int = 0, size: int = 1
    ) -> None:
        wide = np.asarray(aspect_ratios) >= 1
        self.groups = [np.flatnonzero(wide), np.flatnonzero(~wide)]
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.size = rank, size
        self.set_position(0, 0)

    def set_position(self, epoch: int, skip_batches: int = 0) -> None:
        """What each following `iter` yields: `epoch`'s batches after the first `skip_batches`.

        It holds until the next call: a loader with workers calls `iter` twice for its first
        epoch, so the position must not move by itself.
        """
        self.epoch, self.skip_batches = epoch, skip_batches

    def batches(self, epoch: int) -> list[list[Key]]:
        """All batches of an epoch, in order, whole."""
        rng = np.random.default_rng((self.seed, epoch))
        found = []
        for group in self.groups:
            keys = [(epoch, index) for index in rng.permutation(group).tolist()]
            starts = range(0, len(keys), self.batch_size)
            found += [keys[start : start + self.batch_size] for start in starts]
        return [found[position] for position in rng.permutation(len(found))]

    def __iter__(self) -> Iterator[list[Key]]:
        rest = self.batches(self.epoch)[self.skip_batches :]
        return (batch[self.rank :: self.size] for batch in rest)

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the position."""
        return sum(math.ceil(len(group) / self.batch_size) for group in self.groups)


def collate(batch: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Images differ in size, so they stay a list."""
    return [image for image, _ in batch], [target for _, target in batch]


def make_loader(dataset: Dataset, batches: Iterable[list], workers: int) -> DataLoader:
    """Loader of (list of images, list of targets).

    Args:
        batches: lists of keys of the data set, e.g. `AspectGroupedBatches`, or lists of indices.
        workers: processes, kept from epoch to epoch; 0 loads in this process.
    """
    return Loader(
        Watched(dataset, workers),
        batch_sampler=batches,
        num_workers=workers,
        # Python's own way of starting processes: in joblib's workers another one is the default.
        multiprocessing_context=multiprocessing.get_all_start_methods()[0] if workers else None,
        collate_fn=collate,
        persistent_workers=workers > 0,
        # Threads need no word here: torch starts every worker with one.
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        # Else each `iter` takes a number from the global generator, and a resumed run differs.
        generator=torch.Generator(),
    )


def empty_batch() -> Batch:
    """A batch for a process without an image: one small image whose whole area is ignored."""
    everywhere = torch.tensor([[-1e6, -1e6, 1e6, 1e6]])
    target: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    target |= {"ignore": everywhere, "image_id": -1, "seed": 0}
    return [torch.zeros(3, 64, 64, dtype=torch.uint8)], [target]
