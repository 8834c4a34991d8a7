"""Splits that are cut here: K folds of all images, or a part of the training images for validation.

Both sort the images by file name, cut them into blocks of neighbours and shuffle the blocks.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frcnn.data.dataset import DetectionDataset
from frcnn.data.federated import joined
from frcnn.data.image_files import ImageFiles
from frcnn.data.problems import Problems
from frcnn.data.records import Classes, Images, Objects, refuse_without_objects
from frcnn.errors import ConfigError, UserError


def pool(parts: Sequence[DetectionDataset]) -> DetectionDataset:
    """All images of several splits, an image that two of them list once.

    Files become relative to a folder that holds those of all splits. Ids stay where no two images
    share one; otherwise the files are the ids.

    Raises:
        UserError: the images are not files, or the splits have other classes.
    """
    folder = Path(os.path.commonpath([_files(part).folder.absolute() for part in parts]))
    names = list(parts[0].class_names)
    if any(list(part.class_names) != names for part in parts):
        raise UserError(f"{folder}: the splits have other classes, so folds cannot mix them")
    files = np.concatenate([_relative(part, folder) for part in parts])
    ids = [id for part in parts for id in part.image_ids]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    images = Images(
        ids,
        files,
        np.concatenate([part.widths for part in parts]),
        np.concatenate([part.heights for part in parts]),
    )
    objects = Objects(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        *(
            np.concatenate([getattr(part, column) for part in parts])
            for column in ("boxes", "labels", "ignore", "areas")
        ),
    )
    classes = Classes(names, list(parts[0].category_ids))
    pooled = DetectionDataset(ImageFiles(folder, *images[1:]), images, objects, classes, Problems())
    pooled.federated = joined([part.federated for part in parts], [len(part) for part in parts])
    for part in parts:
        renamed = dict(zip(part.files.tolist(), _relative(part, folder).tolist(), strict=True))
        pooled.problems.merge(part.problems, renamed)
    _, first = np.unique(files, return_index=True)
    _keep(pooled, np.isin(np.arange(len(files)), first))
    if len(set(pooled.image_ids)) < len(pooled):
        pooled.image_ids = pooled.files.tolist()
    return pooled


def fold_numbers(files: Sequence[str], folds: int, seed: int = 0, block: int = 1) -> np.ndarray:
    """int64 [I]: the fold of each image, a function of the file names alone.

    The blocks are dealt out one by one, so that the folds differ by one block at most.

    Raises:
        ConfigError: fewer blocks than folds.
    """
    ranks = block_ranks(files, seed, block)
    blocks = int(ranks.max()) + 1
    if blocks < folds:
        raise ConfigError(
            f"data.folds: {folds} folds of {_counted(files, block)}: there are {blocks} blocks only"
        )
    return ranks % folds


def in_fraction(files: Sequence[str], fraction: float, seed: int = 0, block: int = 1) -> np.ndarray:
    """bool [I]: whether an image is of the ``fraction`` for validation, by the file names alone.

    The number of blocks is rounded to the nearest.

    Raises:
        ConfigError: the fraction is no block, or all blocks.
    """
    ranks = block_ranks(files, seed, block)
    blocks = int(ranks.max()) + 1
    chosen = round(fraction * blocks)
    if not 0 < chosen < blocks:
        raise ConfigError(
            f"data.val_fraction: {fraction} of {_counted(files, block)} is "
            f"{chosen} of {blocks} blocks: both splits need at least one"
        )
    return ranks < chosen


def block_ranks(files: Sequence[str], seed: int, block: int) -> np.ndarray:
    """int64 [I]: the place, from 0, of each image's block among the shuffled blocks.

    The files are sorted by name, then by path, and cut into blocks of ``block`` neighbours.
    """
    names = [(Path(file).name, file) for file in files]
    order = sorted(range(len(names)), key=names.__getitem__)
    blocks = -(-len(names) // block)
    place = np.empty(blocks, dtype=np.int64)
    place[np.random.default_rng(seed).permutation(blocks)] = np.arange(blocks)
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[order] = place[np.arange(len(names)) // block]
    return ranks


def _counted(files: Sequence[str], block: int) -> str:
    return f"{len(files)} images in blocks of {block}"


def of_fold(
    pooled: DetectionDataset,
    split: str,
    folds: int,
    fold: int,
    split_seed: int = 0,
    split_block: int = 1,
) -> DetectionDataset:
    """The part of ``pooled`` that is this fold ("val"), or all other folds ("train").

    Raises:
        ConfigError: as ``fold_numbers``.
        UserError: training has no object.
    """
    held = fold_numbers(pooled.files.tolist(), folds, split_seed, split_block) == fold
    return _part(pooled, split, held)


def of_fraction(
    images: DetectionDataset,
    split: str,
    val_fraction: float,
    split_seed: int = 0,
    split_block: int = 1,
) -> DetectionDataset:
    """The ``val_fraction`` of the images ("val"), or all others ("train").

    Raises:
        ConfigError: as ``in_fraction``.
        UserError: training has no object.
    """
    _files(images)  # names are needed
    held = in_fraction(images.files.tolist(), val_fraction, split_seed, split_block)
    return _part(images, split, held)


def _part(images: DetectionDataset, split: str, held: np.ndarray) -> DetectionDataset:
    """The images that are ``held`` for validation, or the others; bool [I]."""
    _keep(images, held if split == "val" else ~held)
    if split == "train":
        refuse_without_objects(images.ignore, _files(images).folder, images.problems)
    return images


def _keep(dataset: DetectionDataset, wanted: np.ndarray) -> None:
    folder = _files(dataset).folder
    dataset.keep(wanted)
    dataset.load = ImageFiles(folder, dataset.files, dataset.widths, dataset.heights)


def _files(dataset: DetectionDataset) -> ImageFiles:
    if not isinstance(dataset.load, ImageFiles):
        raise UserError("data.folds, data.val_fraction: the images are not files with names")
    return dataset.load


def _relative(part: DetectionDataset, folder: Path) -> np.ndarray:
    inside = os.path.relpath(_files(part).folder.absolute(), folder)
    names = [os.path.normpath(os.path.join(inside, file)) for file in part.files.tolist()]
    return np.array(names, dtype=np.str_)
