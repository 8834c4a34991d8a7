"""K folds of a data set: every split pooled, one fold for validation, the others for training."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frcnn.data.dataset import DetectionDataset
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
    for part in parts:
        pooled.problems.merge(part.problems)
    _, first = np.unique(files, return_index=True)
    _keep(pooled, np.isin(np.arange(len(files)), first))
    if len(set(pooled.image_ids)) < len(pooled):
        pooled.image_ids = pooled.files.tolist()
    return pooled


def fold_numbers(files: Sequence[str], folds: int, seed: int = 0, block: int = 1) -> np.ndarray:
    """int64 [I]: the fold of each image, a function of the file names alone.

    The files are sorted by name and cut into blocks of ``block`` neighbours. The blocks are
    shuffled and dealt out one by one, so that the folds differ by one block at most.

    Raises:
        ConfigError: fewer blocks than folds.
    """
    names = [(Path(file).name, file) for file in files]
    order = sorted(range(len(names)), key=names.__getitem__)
    blocks = -(-len(names) // block)
    if blocks < folds:
        raise ConfigError(
            f"data.folds: {folds} folds of {len(names)} images in blocks of {block}: "
            f"there are {blocks} blocks only"
        )
    dealt = np.empty(blocks, dtype=np.int64)
    dealt[np.random.default_rng(seed).permutation(blocks)] = np.arange(blocks) % folds
    found = np.empty(len(names), dtype=np.int64)
    found[order] = dealt[np.arange(len(names)) // block]
    return found


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
    chosen = fold_numbers(pooled.files.tolist(), folds, split_seed, split_block) == fold
    _keep(pooled, chosen if split == "val" else ~chosen)
    if split == "train":
        refuse_without_objects(pooled.ignore, _files(pooled).folder, pooled.problems)
    return pooled


def _keep(dataset: DetectionDataset, wanted: np.ndarray) -> None:
    folder = _files(dataset).folder
    dataset.keep(wanted)
    dataset.load = ImageFiles(folder, dataset.files, dataset.widths, dataset.heights)


def _files(dataset: DetectionDataset) -> ImageFiles:
    if not isinstance(dataset.load, ImageFiles):
        raise UserError("data.folds: this reader's images are not files, so they have no names")
    return dataset.load


def _relative(part: DetectionDataset, folder: Path) -> np.ndarray:
    inside = os.path.relpath(_files(part).folder.absolute(), folder)
    names = [os.path.normpath(os.path.join(inside, file)) for file in part.files.tolist()]
    return np.array(names, dtype=np.str_)
