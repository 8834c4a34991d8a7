"""What a run ran on, and with what settings."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision

from frcnn.errors import UserError
from frcnn.runfolder.files import write_text

ROOT = Path(__file__).resolve().parents[2]
# What a result may depend on beside torch and torchvision.
PACKAGES = (
    "numpy", "pillow", "scipy", "pycocotools", "faster-coco-eval", "hydra-core", "omegaconf",
    "wandb",
)  # fmt: skip


def record_environment(
    folder: Path, device: torch.device, precision: str, step: int, evaluator: str
) -> None:
    """Add this start of a run, which goes on after ``step``, to those before; at 0 to none.

    Args:
        precision: what it computes in, as ``precision_name``: ``trainer.precision=auto`` is not the
            same everywhere.
        evaluator: name of the COCO evaluator that ``evaluation.backend`` stands for here.

    Raises:
        UserError: the file cannot be read or written.
    """
    path = folder / "environment.json"
    try:
        before = json.loads(path.read_text()) if step and path.exists() else []
        own = {"precision": precision, "evaluator": evaluator}
        entries = [*before, {"step": step, **environment(device), **own}]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error}); move it away") from error
    write_text(path, json.dumps(entries, indent=2) + "\n")


def record_settings(folder: Path) -> None:
    """Keep Hydra's files of this command in ``.hydra/run``.

    Hydra writes its own at every command that is given the folder, also at one that is refused.

    Raises:
        UserError: a file cannot be written.
    """
    for file in (folder / ".hydra").glob("*.yaml"):
        write_text(file.parent / "run" / file.name, file.read_text())


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit, machine and command; of the environment's variables none."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "version": _version("frcnn-samplers"),
        **commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": platform.node(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "gpu": gpu(device) if device.type == "cuda" else None,
    }


def gpu(device: torch.device) -> dict[str, Any]:
    """A GPU's name and what drives it; ``driver`` is the kernel module's line, on Linux."""
    module = Path("/proc/driver/nvidia/version")
    return {
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": module.read_text().splitlines()[0] if module.exists() else None,
    }


def commit(*ignored: str) -> dict[str, Any]:
    """``commit`` of the code's own clone and whether files differ from it (``dirty``).

    A new file that git does not ignore is a difference: it may be a sampler. Both are None outside
    a clone, also where the code is installed below somebody else's. ``ignored`` folders do not
    count.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != ROOT:
            return {"commit": None, "dirty": None}
        counted = [".", *(f":!{path}" for path in ignored)]
        return {
            "commit": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain", "--", *counted)),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def processor() -> str:
    """The processor's name, where the system tells it."""
    with_names = Path("/proc/cpuinfo")
    lines = with_names.read_text().splitlines() if with_names.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # not installed, or a copy of our folder
        return None
