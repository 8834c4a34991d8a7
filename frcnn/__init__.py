"""torchvision's detectors with a choice of samplers, losses, assigners and weighers at every
site.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frcnn.model import build_detector as build_detector


def __getattr__(name: str) -> object:
    """``frcnn.build_detector``, imported when it is asked for: torch takes seconds to load."""
    if name == "build_detector":
        from frcnn.model import build_detector

        return build_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
