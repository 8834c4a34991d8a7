"""Training steps of one checkout, on request. ``against`` starts it once per checkout.

The command line is DEVICE OVERRIDE.... Each line of standard input is a sampler and a precision
(``ohem fp32``): the process runs one training step and answers with one line, ``done``.

It uses only names of ``experiments.benchmark`` that older checkouts have too: their packages lie
elsewhere, and each checkout builds its detector with its own code.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from experiments.benchmark import setting, step
from experiments.benchmark.training import Training


def main(device_name: str, *overrides: str) -> None:
    """Answer the requests until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    device = torch.device(device_name)
    if device.type == "cpu":
        step.keep_freed_memory()
    print(setting.__file__, file=answers, flush=True)
    for line in sys.stdin:
        sampler, precision = line.split()
        training_step(device, tuple(overrides), sampler)(precision)
        setting.waiter(device)()
        print("done", file=answers, flush=True)


@cache
def training_step(
    device: torch.device, overrides: Sequence[str], sampler: str
) -> Callable[[str], Any]:
    """The step of a detector with this sampler preset: a function of the precision."""
    config = setting.compose(*overrides, f"sampler={sampler}")
    batch, classes = setting.batch_of(config)
    training = Training(setting.ours(config, classes, device), config, device)
    return lambda precision: training.step(batch, precision)


if __name__ == "__main__":
    main(*sys.argv[1:])
