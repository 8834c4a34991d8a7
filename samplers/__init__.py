"""Which examples a detector learns from.

Every method is one function from the candidates of a site (for example the RPN's anchors or the
RCNN head's proposals) to one weight per candidate. Weight 0 means "not sampled". One paper per
file.
"""

from samplers.all import All
from samplers.candidates import Candidates, Prediction, Sampler
from samplers.hard_negative import HardNegative
from samplers.libra import InstanceBalanced, IoUBalanced, Libra
from samplers.ofb import OFB
from samplers.ohem import OHEM
from samplers.pisa import PISA
from samplers.random import Random

__all__ = [
    "OFB",
    "OHEM",
    "PISA",
    "All",
    "Candidates",
    "HardNegative",
    "InstanceBalanced",
    "IoUBalanced",
    "Libra",
    "Prediction",
    "Random",
    "Sampler",
]
