"""Checks of constructor arguments; each message begins with the name of the argument."""

from collections.abc import Sequence


def check_budget(batch_size_per_image: int, positive_fraction: float) -> None:
    """Raise ValueError unless B >= 1 and the fraction lies in [0, 1]."""
    check_at_least_one("batch_size_per_image", batch_size_per_image)
    check_share("positive_fraction", positive_fraction)


def check_at_least_one(name: str, value: int) -> None:
    """Raise ValueError unless the value is at least 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_above_zero(name: str, value: float) -> None:
    """Raise ValueError unless the value is above 0."""
    if not value > 0:  # NaN is not
        raise ValueError(f"{name} must be above 0, got {value}")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless the value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError unless the value is finite and at least 0."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def check_iou_threshold(name: str, value: float) -> None:
    """Raise ValueError unless the value lies in (0, 1]: an IoU above which two boxes are one."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
