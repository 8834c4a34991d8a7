"""What bad input may end in: a whole data set, or one line that a person can use."""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from frcnn.data import DetectionDataset, drop_unusable_images
from frcnn.errors import UserError


def usable(read: Callable[[str], DetectionDataset], split: str = "train") -> DetectionDataset:
    """A split as a run reads it, checked to be whole."""
    data = read(split)
    drop_unusable_images(data, split)
    assert_whole(data)
    return data


def refused(act: Callable[..., Any], *arguments: Any) -> str:
    """The one line that ``act`` is refused with; anything else would be a traceback."""
    with pytest.raises(UserError) as caught:
        act(*arguments)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 1100
    assert caught.value.exit_code in (1, 2)
    return line


def assert_whole(data: DetectionDataset) -> None:
    """Every number is one that a step can be taken with, and every image lies in the folder."""
    count = len(data)
    assert len(data.image_ids) == len(data.files) == len(data.widths) == len(data.heights) == count
    assert len(set(data.image_ids)) == count > 0
    assert data.offsets[0] == 0 and data.offsets[-1] == len(data.boxes)
    assert (np.diff(data.offsets) >= 0).all()
    image = np.repeat(np.arange(count), np.diff(data.offsets))
    corner = np.stack([data.widths, data.heights], axis=1)[image]
    low, high = data.boxes[:, :2], data.boxes[:, 2:]
    assert np.isfinite(data.boxes).all() and (low >= 0).all()
    assert (low < high).all() and (high <= corner).all()
    assert ((data.labels >= 1) & (data.labels < data.num_classes)).all()
    assert np.isfinite(data.areas).all() and (data.areas >= 0).all()
    assert all(isinstance(id, int | str) for id in [*data.image_ids, *data.category_ids])
    assert all(name.isprintable() for name in data.class_names)
    folder = os.path.normpath(data.load.folder) + os.sep  # type: ignore[attr-defined]
    assert all(os.path.normpath(folder + file).startswith(folder) for file in data.files.tolist())
    pairs = [] if data.federated is None else data.federated[:2]
    assert all(((own >= (0, 1)) & (own < (count, data.num_classes))).all() for own in pairs)
    json.dumps(data.ground_truth(), allow_nan=False)
    assert all(line.isprintable() for line in data.problems.table().splitlines())
