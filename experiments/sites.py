"""The sites of a detector, by name: the one place that says where a detector keeps them."""

from frcnn.model import Detector
from frcnn.sites.site import Site


def sites_of(detector: Detector) -> dict[str, Site]:
    """By name, in the order in which the network meets them."""
    return {site.name: site for site in detector.sites}


def takes_anchors(site: Site) -> bool:
    """Whether the candidates are anchors, else proposals.

    Anchors lie anywhere, so only a site of anchors keeps the best ones of every object.
    """
    return site.matcher.keep_best


def background_below(site: Site) -> float:
    """The IoU below which a candidate is background."""
    return site.matcher.low
