"""The kinds of sites that detectors have, and the numbers that are usual at each.

Faster R-CNN (arXiv 1506.01497) and RetinaNet (arXiv 1708.02002) with torchvision's values.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What torchvision uses at a site of this kind.

    Attributes:
        budget: samples per image.
        positive_fraction: largest share of positives among them.
        high, low, keep_best: of the assigner ``MaxIoU``.
        terms: torchvision's names of the class and the box term.
    """

    budget: int
    positive_fraction: float
    high: float
    low: float
    keep_best: bool
    terms: tuple[str, str]


KINDS = {
    "rpn": Kind(256, 0.5, 0.7, 0.3, True, ("loss_objectness", "loss_rpn_box_reg")),
    "rcnn": Kind(512, 0.25, 0.5, 0.5, False, ("loss_classifier", "loss_box_reg")),
    "dense": Kind(256, 0.25, 0.5, 0.4, True, ("classification", "bbox_regression")),
}


def term_names(site: str, kind: str) -> tuple[str, str]:
    """Names of a site's class and box term: torchvision's, and the site's name where they differ.

    >>> term_names("rcnn", "rcnn"), term_names("rcnn2", "rcnn")[0]
    (('loss_classifier', 'loss_box_reg'), 'loss_classifier_rcnn2')
    """
    class_term, box_term = KINDS[kind].terms
    if site == kind:
        return class_term, box_term
    return f"{class_term}_{site}", f"{box_term}_{site}"
