"""Validation: images per second of detections and loss together."""

from functools import partial
from typing import Any

import torch

from experiments.benchmark import setting
from experiments.benchmark.report import WHY, Row, table
from experiments.benchmark.setting import ON_CPU, ON_CUDA, RETINANET_ON_CPU, Workload
from experiments.benchmark.timing import interleaved, spread
from experiments.benchmark.training import Training
from experiments.benchmark.worker import validate
from frcnn.parallel.device import keep_freed_memory


def measure(device: torch.device, seconds: float) -> dict[str, Any]:
    """A table of each workload of the device."""
    workloads = (ON_CPU, RETINANET_ON_CPU) if device.type == "cpu" else ON_CUDA
    tables = [_table(workload, device, seconds / len(workloads)) for workload in workloads]
    return {"tables": tables}


def _table(workload: Workload, device: torch.device, seconds: float) -> dict[str, Any]:
    if device.type == "cpu":
        keep_freed_memory()
    config = setting.compose(*workload.overrides())
    batch, classes = setting.batch_of(config)
    training = Training(setting.ours(config, classes, device), config, device)
    precisions = ["fp32", "bf16"] if setting.computes_bf16(device) else ["fp32"]
    calls = {precision: partial(validate, training, batch, precision) for precision in precisions}
    found = interleaved(calls, seconds, wait=setting.waiter(device))
    images = workload.batch
    rows: list[Row] = [
        {"validation": f"ours, {name}", "images/s": spread([images / s for s in values])}
        for name, values in found.items()
    ]
    if "bf16" not in found:
        rows.append({"validation": "ours, bf16", WHY: setting.no_bf16(device)})
    note = "Random weights: trained ones leave fewer detections to sort out."
    return table(f"Validation: {workload}", rows, note)
