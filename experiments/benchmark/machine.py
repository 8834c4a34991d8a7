"""The machine and code that were measured, without names of hosts or people, and paths."""

import datetime
import os
import platform
from typing import Any

import torch
import torchvision

from experiments.benchmark.setting import computes_bf16
from frcnn.runfolder.environment import commit, processor


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, GPU and versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "GPU": gpu,
        "computes in bf16": computes_bf16(device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def now() -> dict[str, str | None]:
    """Date and commit; "+" after the commit: files differed from it."""
    # Results of earlier parts are in the tree already, and do not count as changes.
    state = commit("experiments/benchmarks")
    short = state["commit"] and state["commit"][:7] + ("+" if state["dirty"] else "")
    return {"commit": short, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
