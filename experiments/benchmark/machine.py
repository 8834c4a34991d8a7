"""What the figures were measured on; no names of hosts or people, no paths."""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision

from experiments.benchmark.setting import computes_bf16

ROOT = Path(__file__).resolve().parents[2]


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, GPU and versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "GPU": gpu,
        "computes in bf16": computes_bf16(device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _processor() -> str:
    with_names = Path("/proc/cpuinfo")
    lines = with_names.read_text().splitlines() if with_names.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def now() -> dict[str, str | None]:
    """Date and commit; "+" after a commit says that files differed from it."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    git = ["git", "-C", str(ROOT)]
    try:
        commit = _said([*git, "rev-parse", "--short=7", "HEAD"])
        # The results of the parts before this one lie in the tree already.
        code = ["--untracked-files=no", "--", ".", ":!experiments/benchmarks"]
        commit += "+" if _said([*git, "status", "--porcelain", *code]) else ""
    except (OSError, subprocess.CalledProcessError):
        commit = None  # not in a clone
    return {"commit": commit, "date": date}


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
