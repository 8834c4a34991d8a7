"""Start-up: seconds from the command to the first step."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.benchmark.report import table
from experiments.benchmark.timing import interleaved, spread

HERE = Path(__file__).resolve().parents[2]


def measure(device: torch.device, seconds: float) -> dict[str, Any]:
    """A table of processes that take turns."""
    found = interleaved(
        {
            "imports of a training run": lambda: _run("-c", "import frcnn.training.launch"),
            "command to the first step": lambda: first_step(device),
        },
        seconds,
    )
    rows = [{"start": name, "seconds": spread(values)} for name, values in found.items()]
    return {"tables": [table("Start of a run on the embedded images", rows)]}


def _run(*arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=HERE, env=environment, check=True, stdout=subprocess.DEVNULL)


def first_step(device: torch.device, overrides: Sequence[str] = ()) -> None:
    """Start a run of one step; returns when it has recorded that step.

    Raises:
        SystemExit: the run ended without a step.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            *(sys.executable, "-m", "frcnn.train", "data=shapes", "wandb.mode=disabled"),
            *("trainer.max_steps=1", "trainer.log_every=1", f"trainer.device={device.type}"),
            *("schedule.warmup_steps=0", "trainer.workers=0"),
            *(f"hydra.run.dir={folder / 'run'}", *overrides),
        ]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, cwd=HERE, stdout=quiet, stderr=quiet) as process:
            while not _recorded(folder / "run/metrics.jsonl"):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command)}: ended without a step")
                time.sleep(0.01)
            process.kill()


def _recorded(file: Path) -> bool:
    return file.exists() and "train/loss" in file.read_text()
