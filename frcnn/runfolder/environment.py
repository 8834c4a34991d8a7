"""Records of the machine, the versions and the settings of a run."""

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
import yaml

from frcnn.errors import UserError
from frcnn.runfolder.files import write_text

ROOT = Path(__file__).resolve().parents[2]
# Packages other than torch and torchvision that may change a result.
PACKAGES = (
    "numpy", "pillow", "scipy", "pycocotools", "faster-coco-eval", "hydra-core", "omegaconf",
    "wandb",
)  # fmt: skip


def record_environment(
    folder: Path, device: torch.device, precision: str, step: int, evaluator: str
) -> None:
    """Append an entry for this start of a run to ``environment.json``; at step 0 start a new file.

    Args:
        step: the last step before this start.
        precision: the name of the precision that ``trainer.precision`` stands for on this machine.
        evaluator: the name of the COCO evaluator that ``evaluation.backend`` stands for.

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


def record_settings(folder: Path, weights: str | None = None) -> None:
    """Copy Hydra's files of this command to ``.hydra/run``.

    Every command with this folder overwrites Hydra's own files, also a command that is refused.

    Args:
        weights: what the run's ``model.weights`` came to; written where the command says "auto".

    Raises:
        UserError: a file cannot be written.
    """
    for file in (folder / ".hydra").glob("*.yaml"):
        text = file.read_text()
        if file.name == "config.yaml":
            text = _with_weights(text, weights)
        write_text(file.parent / "run" / file.name, text)


def _with_weights(text: str, weights: str | None) -> str:
    config = yaml.safe_load(text)
    if config.get("model", {}).get("weights") != "auto":
        return text
    config["model"]["weights"] = weights
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit, machine and command, but no environment variables."""
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
        # What sums are computed with: AVX2 and AVX-512 round differently.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu(device) if device.type == "cuda" else None,
    }


def gpu(device: torch.device) -> dict[str, Any]:
    """A GPU's name, CUDA and cuDNN, and on Linux the kernel module's version line (``driver``)."""
    module = Path("/proc/driver/nvidia/version")
    return {
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": module.read_text().splitlines()[0] if module.exists() else None,
    }


def commit(*ignored: str) -> dict[str, Any]:
    """The ``commit`` of the code's clone, and whether files differ from it (``dirty``).

    A new file that git does not ignore is a difference: it may be a sampler. Both are None if the
    code is not in a clone of this project, even if it lies inside another clone.

    Args:
        ignored: folders whose files do not count.
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
    """The processor's name, if the system has it."""
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
    except importlib.metadata.PackageNotFoundError:  # not installed, or only the folder is copied
        return None
