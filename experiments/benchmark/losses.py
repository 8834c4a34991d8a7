"""What class losses cost at a large head: forward and backward passes of thousands of samples."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.benchmark import setting
from experiments.benchmark.report import Row, table
from experiments.benchmark.samplers import BASELINE, Variants
from experiments.benchmark.setting import ON_CPU, ON_CUDA
from experiments.benchmark.timing import interleaved, ratio, spread
from frcnn.config.compose import build
from frcnn.losses.examples import few_samples
from frcnn.losses.samples import ClassLoss, Samples
from frcnn.model.sites import prepare_loss

SAMPLES, POSITIVES, CLASSES = 2_000, 500, 80  # a head that keeps every proposal, on COCO


def measure(device: torch.device, seconds: float) -> dict[str, Any]:
    """A table of all class losses, each beside a training step."""
    workload = ON_CPU if device.type == "cpu" else ON_CUDA[-1]
    samples = head(device)
    calls: dict[str, Callable[[], object]] = {
        name: partial(both_passes, class_loss(name), samples) for name in setting.options("loss")
    }
    calls[BASELINE] = Variants(workload, device).step(BASELINE)
    found = interleaved(calls, seconds, wait=setting.waiter(device))
    step = found.pop(BASELINE)
    rows: list[Row] = [
        {
            "loss": name,
            "times a step": ratio(values, step),
            "ms": spread([1000 * value for value in values]),
        }
        for name, values in found.items()
    ]
    title = f"Class losses of {SAMPLES:,} samples of {CLASSES} classes, forward and backward"
    return {"tables": [table(title, rows, f"The step is one of {BASELINE}, {workload}.")]}


def class_loss(name: str) -> ClassLoss:
    """The class loss of an option for a head of ``CLASSES`` classes, from rare to frequent."""
    node = setting.compose(f"loss={name}")["loss"]["rcnn"]
    counts = list(range(1, CLASSES + 1))
    numbers = {"class_counts": counts, "class_frequencies": [n / CLASSES for n in counts]}
    node |= {key: value for key, value in numbers.items() if node.get(key) == "data"}
    loss: ClassLoss = build(node)
    prepare_loss("rcnn", loss, CLASSES + 1)
    return loss


def head(device: torch.device) -> Samples:
    """Samples with random logits; of the positives each predicted box overlaps its object."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(SAMPLES, dtype=torch.int64)
    labels[:POSITIVES] = torch.randint(1, CLASSES + 1, (POSITIVES,), generator=generator)
    corner = 100 * torch.rand(POSITIVES, 2, generator=generator)
    objects = torch.cat((corner, corner + 50), 1)
    boxes = objects + 10 * torch.rand(POSITIVES, 4, generator=generator)
    logits = torch.randn(SAMPLES, CLASSES + 1, generator=generator)
    rows = (logits, boxes, boxes, objects)
    with torch.device(device):
        return few_samples(labels.tolist(), *(part.tolist() for part in rows))


def both_passes(loss: ClassLoss, samples: Samples) -> Tensor:
    """[K, C+1] gradient of the logits under the sum of the values."""
    logits = samples.logits.detach().requires_grad_()
    total = loss(replace(samples, logits=logits, training=True)).sum()
    return torch.autograd.grad(total, logits)[0]
