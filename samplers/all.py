"""No sampling: every candidate that is not ignored."""

from torch import Tensor

from samplers.candidates import Candidates


class All:
    """Weight 1 for every candidate, 0 for the ignored ones.

    Most candidates are negatives, which have no box loss. A box loss that is divided by the number
    of samples then vanishes; choose ``box_loss.*.per=positive`` with this sampler.

    >>> from samplers.examples import one_image
    >>> All()(one_image(labels=[1, 0, -1])).tolist()
    [1.0, 1.0, 0.0]
    """

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        return (candidates.labels >= 0).float()
