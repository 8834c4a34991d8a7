"""Learning rate as a function of the step only, so a resumed run needs no scheduler state."""

import math
from collections.abc import Sequence

from frcnn.config.schema import Count, NotNegative, Share


def warmup(step: int, steps: int, factor: float) -> float:
    """Linear from ``factor`` at step 0 to 1 at ``steps`` (Goyal et al., arXiv 1706.02677)."""
    return 1.0 if step >= steps else factor + (1 - factor) * step / steps


class Cosine:
    """Half a cosine from 1 to ``final_factor`` over the run (arXiv 1608.03983, eq. 5)."""

    def __init__(self, warmup_steps: Count, warmup_factor: Share, final_factor: Share) -> None:
        self.warmup_steps, self.warmup_factor = warmup_steps, warmup_factor
        self.final = final_factor

    def __call__(self, step: int, total: int) -> float:
        """Factor on the learning rate at optimizer step ``step`` (from 0) of ``total``."""
        fall = 0.5 * (1 + math.cos(math.pi * step / total))
        return warmup(step, self.warmup_steps, self.warmup_factor) * (
            self.final + (1 - self.final) * fall
        )


class MultiStep:
    """Multiplied by ``gamma`` after each milestone, a fraction of the run in [0, 1]."""

    def __init__(
        self,
        warmup_steps: Count,
        warmup_factor: Share,
        milestones: Sequence[Share],
        gamma: NotNegative,
    ) -> None:
        self.warmup_steps, self.warmup_factor = warmup_steps, warmup_factor
        self.milestones = tuple(milestones)
        self.gamma = gamma

    def __call__(self, step: int, total: int) -> float:
        """Factor on the learning rate at optimizer step ``step`` (from 0) of ``total``."""
        passed = sum(step >= milestone * total for milestone in self.milestones)
        return warmup(step, self.warmup_steps, self.warmup_factor) * self.gamma**passed
