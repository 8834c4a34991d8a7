"""Work of one checkout, on request. ``against`` starts it once per checkout.

The command line is DEVICE OVERRIDE.... Each line of standard input names a piece of work and a
precision: the process does it and answers with one line, ``done``. The work is a training step with
a sampler (``ohem fp32``), the validation of a batch (``validation fp32``), or an eighth of what
``make train`` does (``make-train fp32``).

It uses only names of ``experiments.benchmark`` that older checkouts have too: their packages lie
elsewhere, and each checkout builds its detector with its own code.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch

from experiments.benchmark import setting, step

# In older checkouts the last three are defined elsewhere.
from experiments.benchmark.training import DTYPES, Training, autocast, prepare


def main(device_name: str, *overrides: str) -> None:
    """Answer the requests until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    device = torch.device(device_name)
    if device.type == "cpu":
        step.keep_freed_memory()
    print(setting.__file__, file=answers, flush=True)
    for line in sys.stdin:
        name, precision = line.split()
        work(device, tuple(overrides), name)(precision)
        setting.waiter(device)()
        print("done", file=answers, flush=True)


@cache
def work(device: torch.device, overrides: Sequence[str], name: str) -> Callable[[str], Any]:
    """A piece of work, as a function of the precision."""
    if name == "make-train":
        return partial(_make_train, *_made(device, "experiment=quick", "sampler=ohem"))
    if name == "validation":
        return partial(validate, *_made(device, *overrides))
    training, batch = _made(device, *overrides, f"sampler={name}")
    return partial(training.step, batch)


def _made(device: torch.device, *overrides: str) -> tuple[Training, Any]:
    """A detector in training, and its batch."""
    config = setting.compose(*overrides)
    batch, classes = setting.batch_of(config)
    return Training(setting.ours(config, classes, device), config, device), batch


def validate(training: Training, batch: Any, precision: str) -> None:
    """Detections and loss of a batch, as validation computes them."""
    model, device = training.model.eval(), training.device
    with torch.inference_mode(), autocast(device, DTYPES[precision]):
        model(prepare(batch[0], device), batch[1])
    model.train()


def _make_train(training: Training, batch: Any, precision: str) -> None:
    """An eighth of ``experiment=quick``: of 200 steps, and of 2 validations of 64 images."""
    for _ in range(25):
        training.step(batch, precision)
    for _ in range(2 * 64 // (8 * len(batch[0]))):
        validate(training, batch, precision)


if __name__ == "__main__":
    main(*sys.argv[1:])
