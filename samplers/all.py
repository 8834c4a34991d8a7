"""No sampling: every candidate that is not ignored."""

from torch import Tensor

from samplers.candidates import Candidates


class All:
    """Weight 1 for every candidate, 0 for the ignored ones.

    With so many negatives a loss "per sample" makes the box loss vanish; choose
    ``box_loss.*.per=positive`` with it.
    """

    def __call__(self, candidates: Candidates) -> Tensor:
        """[N] weights, 0 or 1."""
        return (candidates.labels >= 0).float()
