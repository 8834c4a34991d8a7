"""Our training step against stock torchvision's, and against the machine's limit."""

from functools import partial
from typing import Any

import torch

from experiments.benchmark import memory, setting
from experiments.benchmark.limit import Replay, recorded
from experiments.benchmark.report import WHY, Row, table
from experiments.benchmark.setting import ON_CPU, ON_CUDA, RETINANET_ON_CPU, Workload
from experiments.benchmark.timing import interleaved, ratio, spread
from experiments.benchmark.training import Training
from frcnn.config.compose import KNOWN, one_line
from frcnn.parallel.device import keep_freed_memory

# Peak memory of these is measured beside that of the defaults.
METHODS = ("sampler=random", "sampler=ohem", "sampler=pisa", "sampler/rcnn=all")
BUILDERS = {"stock torchvision": setting.stock, "ours": setting.ours}


def measure(device: torch.device, seconds: float) -> dict[str, Any]:
    """Tables of time, memory and distance from the limit for each workload of the device."""
    if device.type == "cpu":
        workloads = (ON_CPU, RETINANET_ON_CPU)
        share = seconds / len(workloads)
        parts = [_compared(workload, ("fp32", "bf16"), device, share) for workload in workloads]
        parts.append({"tables": [_memory(ON_CPU), _without_cuda()], "seconds": {}})
    else:
        share = seconds / len(ON_CUDA)
        parts = [_compared(workload, ("bf16",), device, share) for workload in ON_CUDA]
    return {
        "tables": [content for part in parts for content in part["tables"]],
        "seconds": {name: s for part in parts for name, s in part["seconds"].items()},
    }


def _memory(workload: Workload) -> dict[str, Any]:
    """Peak memory of a first step by sampler, and by box loss of the RCNN head."""
    precision = "bf16" if setting.computes_bf16(torch.device("cpu")) else "fp32"
    losses = [f"box_loss/rcnn={name}" for name in setting.options("box_loss/rcnn")]
    calls = [(workload, precision, method) for method in (*METHODS, *losses)]
    if memory.can_measure():
        rows = memory.in_children(_memory_row, calls)
    else:
        rows = [{"method": method, WHY: memory.NO_PROC} for _, _, method in calls]
    return table(f"Peak memory of a first step: {workload}, {precision}", rows)


def _memory_row(workload: Workload, precision: str, method: str) -> Row:
    try:
        peak = _first_step(workload, "ours", precision, "cpu", method)
    except KNOWN as error:  # this network cannot have it
        return {"method": method, WHY: one_line("train", error)}
    return {"method": method, "peak memory, MB": round(peak / memory.MB)}


def _without_cuda() -> dict[str, Any]:
    rows = [{"step": f"{workload}, bf16", WHY: setting.NO_CUDA} for workload in ON_CUDA]
    return table("Training step on a GPU", rows)


def _compared(
    workload: Workload, wanted: tuple[str, ...], device: torch.device, seconds: float
) -> dict[str, Any]:
    """Stock, ours and the limit of ours, in turns, at each precision that the hardware has."""
    precisions = [p for p in wanted if p != "bf16" or setting.computes_bf16(device)]
    if not precisions:
        rows = [{"step": precision, WHY: setting.no_bf16(device)} for precision in wanted]
        return {"tables": [table(f"Training step: {workload}", rows)], "seconds": {}}
    config = setting.compose(*workload.overrides())
    trainings, batch = same_weights(config, device)
    if device.type == "cpu":
        keep_freed_memory()  # for both: it is a property of the process
    calls: dict[str, Any] = {
        f"{who}, {precision}": partial(trainings[who].step, batch, precision)
        for precision in precisions
        for who in BUILDERS
    }
    limits = {p: recorded(calls[f"ours, {p}"]) for p in precisions}
    calls |= {f"limit, {precision}": limit for precision, limit in limits.items()}
    found = interleaved(calls, seconds, wait=setting.waiter(device))
    # Else their memory would count for the next workload.
    del trainings, calls
    rows = _step_rows(workload, wanted, found, device)
    return {
        "tables": [
            table(
                f"Training step: {workload}",
                rows,
                "Both ran in one process, so stock torchvision too gains from memory that the C "
                "library keeps. Each has the memory format of its own training script: ours is "
                "channels-last, torchvision's is not. Peak memory is that of a first step in a "
                "process of its own.",
            ),
            table(f"Distance from the limit: {workload}", _limit_rows(found, limits)),
        ],
        "seconds": {f"{workload}: {name}": values for name, values in found.items()},
    }


def same_weights(config: dict[str, Any], device: torch.device) -> tuple[dict[str, Training], Any]:
    """The trainings of ``BUILDERS`` by name, with equal weights, and a batch."""
    batch, classes = setting.batch_of(config)
    models = {who: build(config, classes, device) for who, build in BUILDERS.items()}
    stock, ours = models.values()
    stock.load_state_dict(ours.state_dict())
    ours.load_state_dict(stock.state_dict())
    return {who: Training(model, config, device) for who, model in models.items()}, batch


def _step_rows(
    workload: Workload, wanted: tuple[str, ...], found: dict[str, list[float]], device: torch.device
) -> list[Row]:
    first = next(iter(found))
    rows: list[Row] = []
    for precision in wanted:
        for who in BUILDERS:
            name = f"{who}, {precision}"
            if name not in found:
                rows.append({"step": name, WHY: setting.no_bf16(device)})
                continue
            rows.append(
                {
                    "step": name,
                    f"times as fast as {first}": ratio(found[first], found[name]),
                    "seconds": spread(found[name]),
                    "rounds": len(found[name]),
                    "peak memory, MB": _peak(workload, who, precision, device),
                }
            )
    return rows


def _limit_rows(found: dict[str, list[float]], limits: dict[str, Replay]) -> list[Row]:
    rows = []
    for precision, limit in limits.items():
        ours, alone = found[f"ours, {precision}"], found[f"limit, {precision}"]
        flops = limit.flops()
        rows.append(
            {
                "step": f"ours, {precision}",
                "step / limit": ratio(ours, alone),
                "products alone, seconds": spread(alone),
                "products": len(limit.calls),
                "GFLOP": flops / 1e9,
                "GFLOP/s alone": flops / 1e9 / spread(alone)["median"],
            }
        )
    return rows


def _peak(
    workload: Workload, who: str, precision: str, device: torch.device, *overrides: str
) -> int | str:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return round(_first_step(workload, who, precision, str(device), *overrides) / memory.MB)
    if not memory.can_measure():
        return f"{WHY}: {memory.NO_PROC}"
    peak = memory.in_child(_first_step, workload, who, precision, "cpu", *overrides)
    return round(peak / memory.MB)


def _first_step(
    workload: Workload, who: str, precision: str, device_name: str, *overrides: str
) -> int:
    """Peak bytes of a step above the memory that the process had before it."""
    device = torch.device(device_name)
    config = setting.compose(*workload.overrides(), *overrides)
    batch, classes = setting.batch_of(config)
    if device.type == "cpu":
        keep_freed_memory()
    training = Training(BUILDERS[who](config, classes, device), config, device)
    peak = memory.cuda_rise if device.type == "cuda" else memory.rise
    return peak(lambda: training.step(batch, precision))
