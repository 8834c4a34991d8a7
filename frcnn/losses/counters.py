"""What losses with a counter per class share."""

import torch
from torch import Tensor, nn


def finite_or_zero(values: Tensor) -> Tensor:
    """[...] values with 0 for those that are not finite: the run refuses such a step."""
    return torch.where(values.isfinite(), values, 0)


def check_counters(loss: nn.Module, keys: object) -> None:
    """Raise ValueError unless all loaded counters are finite and >= 0."""
    for name, values in loss.named_buffers():
        if not (values.isfinite() & (values >= 0)).all():
            raise ValueError(f"{name} of {type(loss).__name__} are not finite numbers >= 0")
