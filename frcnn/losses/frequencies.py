"""How many training images show each class, for losses that compare rare and common classes.

Shape letters: C foreground classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Frequencies = Sequence[float] | Literal["data"] | None


def given_frequencies(frequencies: Frequencies) -> Tensor:
    """[C] float64 shares of the training images; ValueError if none were given."""
    if frequencies is None or isinstance(frequencies, str):
        raise ValueError("needs class_frequencies: the share of images that show each class")
    return torch.tensor(frequencies, dtype=torch.float64)


def check_classes(number: int, columns: int) -> None:
    """Raise ValueError unless ``number`` frequencies suit C+1 ``columns``."""
    if number != columns - 1:
        raise ValueError(f"class_frequencies has {number} values, but {columns - 1} classes")
