"""The validation loss: one definition for every run, whatever the run trains with.

Shape letters: K samples, C object classes.
"""

from collections.abc import Callable

from torch import Tensor

from frcnn.losses.activation import binary
from frcnn.losses.samples import CLASS_PER, Divided, Samples


class ScoreCrossEntropy(Divided):
    """Binary cross entropy of the detector's own scores, summed over the C object columns.

    It reads the scores that inference reads, so that losses with different activations can be
    compared; logarithms are bounded at -100. It is divided by the number of samples, as in
    torchvision.

    Args:
        scores: logits [K, C+1] -> scores [K, C+1] in [0, 1]: the run's own class loss's.

    >>> import torch
    >>> samples = Samples(torch.zeros(1, 3), torch.tensor([1]), *[torch.zeros(0)] * 6, None)
    >>> loss = ScoreCrossEntropy(lambda logits: torch.tensor([[0.25, 0.5, 0.25]]))
    >>> loss(samples)  # -ln 0.5 - ln (1 - 0.25)
    tensor([0.9808])
    """

    def __init__(self, scores: Callable[[Tensor], Tensor]) -> None:
        super().__init__("sample", CLASS_PER)
        self.scores = scores

    def __call__(self, samples: Samples) -> Tensor:
        """[K] losses."""
        _, targets = binary(samples)
        scores = self.scores(samples.logits)[:, 1:]
        hit, miss = scores.log().clamp(min=-100), (-scores).log1p().clamp(min=-100)
        return -(targets * hit + (1 - targets) * miss).sum(1)

    def initial_bias(self, columns: int) -> None:
        """It trains nothing."""
