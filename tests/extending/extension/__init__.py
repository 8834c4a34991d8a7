"""A user's own package: methods, a detector, a reader; it changes nothing of the project."""

from extension.methods import Banded, ByScore, Counted, Learned, SoftLabels
from extension.network import three_sites
from extension.reader import squares

__all__ = ["Banded", "ByScore", "Counted", "Learned", "SoftLabels", "squares", "three_sites"]
