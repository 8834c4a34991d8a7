"""Where the time of a step goes, operator by operator."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.benchmark.report import Row

SHOWN = 8


def profiled(call: Callable[[], object], device: torch.device) -> list[Row]:
    """One row per operator that takes most of the time of a call, and one for all others."""
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds, acc_events=True) as watched:
        call()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = sorted(watched.key_averages(), key=lambda entry: getattr(entry, key), reverse=True)
    times = [(entry.key, getattr(entry, key) / 1000, entry.count) for entry in found]
    total = sum(ms for _, ms, _ in times)
    others = times[SHOWN:]
    shown = [*times[:SHOWN], ("all others", sum(t[1] for t in others), sum(t[2] for t in others))]
    return [
        {"operator": name, "ms": ms, "share, %": 100 * ms / total, "calls": count}
        for name, ms, count in shown
    ]
