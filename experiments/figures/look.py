"""Run a trained detector over images and keep what its sites see of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from experiments.figures.seen import Seen, is_object, joined, one_batch
from frcnn.data import prepare
from frcnn.evaluation.load import Trained
from frcnn.model import Detector
from frcnn.parallel.device import autocast
from frcnn.sites.kinds import KINDS, Kind
from frcnn.sites.site import Site
from samplers import OHEM, Candidates, IoUBalanced, Random, Sampler


def look(trained: Trained, loader: DataLoader, budget: Mapping[str, int | None]) -> dict[str, Seen]:
    """What each site sees of the images of a loader, with as many proposals as in training.

    Args:
        budget: examples per image that the compared samplers draw, by site; by default (None, or no
            entry) that of the run, or else what is usual at a site of this kind.
    """
    detector = trained.detector
    usual = {name: KINDS[site.kind].budget for name, site in detector.sites.items()}
    own = usual | trained.budgets | {name: own for name, own in budget.items() if own}
    views = {name: View(site, detector, own[name]) for name, site in detector.sites.items()}
    with watched(detector, views), torch.inference_mode():
        for images, targets in loader:
            with autocast(trained.device, trained.dtype):
                detector(prepare(images, trained.device), targets)
    return {name: joined(view.parts) for name, view in views.items()}


class View:
    """Collects the candidates of one site, batch by batch.

    Args:
        budget: examples per image that the compared samplers draw.
    """

    def __init__(self, site: Site, detector: Detector, budget: int) -> None:
        self.site = site
        self.poolers = [m for m in detector.modules() if isinstance(m, MultiScaleRoIAlign)]
        self.samplers = samplers(budget, KINDS[site.kind])
        self.anchors: list[Tensor] = []  # of each image of the batch, [A, 4]
        self.per_level: list[int] = []  # how many of an image's anchors are of each level
        self.parts: list[Seen] = []
        self.images = 0

    def keep_anchors(
        self, generator: AnchorGenerator, inputs: tuple[Any, list[Tensor]], output: list[Tensor]
    ) -> None:
        """A forward hook: the anchors of the batch come level by level."""
        per_place = generator.num_anchors_per_location()
        places = [level.shape[-2] * level.shape[-1] for level in inputs[1]]
        self.anchors = output
        self.per_level = [n * a for n, a in zip(places, per_place, strict=True)]

    def observe(self, _: str, candidates: Candidates, __: Tensor) -> None:
        """Keep what a batch shows."""
        rows = torch.where((candidates.labels >= 0) & ~is_object(candidates))[0]
        picks = {name: sampler(candidates)[rows] for name, sampler in self.samplers.items()}
        seen = one_batch(self.site, candidates, rows, self.levels(candidates)[rows], picks)
        seen.image += self.images
        self.images += candidates.num_images
        self.parts.append(seen)

    def levels(self, candidates: Candidates) -> Tensor:
        """[N] pyramid level of anchors, else the one that RoIAlign pools a proposal from.

        Anchors are told by their place: their sizes may be the same at every level.
        """
        boxes = candidates.boxes
        if torch.equal(boxes, torch.cat(self.anchors)):
            each = torch.tensor(self.per_level, device=boxes.device)
            level = torch.arange(len(each), device=boxes.device).repeat_interleave(each)
            return level.repeat(candidates.num_images)
        mapper = self.poolers[0].map_levels
        assert mapper is not None  # RoIAlign has pooled these proposals
        return mapper([boxes])


@contextmanager
def watched(detector: Detector, views: Mapping[str, View]) -> Iterator[None]:
    """Each view watches its site and the anchors; afterwards all is as before.

    Meanwhile an RPN of a detector in eval mode keeps as many proposals as in training.
    """
    networks = [m for m in detector.modules() if isinstance(m, RegionProposalNetwork)]
    generators = [m for m in detector.modules() if isinstance(m, AnchorGenerator)]
    modes = [rpn.training for rpn in networks]
    hooks = [g.register_forward_hook(v.keep_anchors) for g in generators for v in views.values()]
    for rpn in networks:
        rpn.training = True  # of the module alone: all that it decides is how many are kept
    for name, view in views.items():
        detector.sites[name].observer = view.observe
    try:
        yield
    finally:
        for name in views:
            detector.sites[name].observer = None
        for rpn, mode in zip(networks, modes, strict=True):
            rpn.training = mode
        for hook in hooks:
            hook.remove()


def samplers(budget: int, kind: Kind) -> dict[str, Sampler]:
    """The samplers whose picks the papers' figures compare, with the papers' defaults."""
    share = kind.positive_fraction
    return {
        "random": Random(budget, share),
        "ohem": OHEM(budget),
        "iou_balanced": IoUBalanced(budget, share, negative_iou=kind.low),
    }
