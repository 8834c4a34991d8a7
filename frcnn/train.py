"""Train a detector: ``python -m frcnn.train sampler=ohem``; ``--help`` lists what can be chosen."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from frcnn.config.compose import command, plain_values
from frcnn.errors import ConfigError
from frcnn.parallel.cluster import detect_launcher

# Keys that do not change which method a run is: seeds, folds, names, places, speed, and what is
# recorded. A report leaves out the same keys (experiments/report/runs.py); a test compares the two.
NOT_METHOD = re.compile(
    r"seed|run_name|resume|done|sweep|data\.(root|fold)|(wandb|evaluation|hydra)[./].*"
    r"|trainer\.(device|channels_last|compile|workers|\w+_every|checkpoint_minutes|keep_checkpoints"
    r"|deterministic|num_pictures)"
)


def train(config: dict[str, Any], choices: dict[str, str], folder: Path) -> float | None:
    """One run; returns its best AP, for a sweeper to compare."""
    # torch takes seconds to load; --help and bad keys need none of it
    from frcnn.training.launch import launch_run

    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    if sweep and config["wandb"]["group"] is None:
        config["wandb"]["group"] = Path(hydra.sweep.dir).name
    if config["wandb"]["method"] is None:
        config["wandb"]["method"] = method(hydra.overrides.task)
    check_launcher(config, sweep, [*hydra.overrides.task, *hydra.overrides.hydra])
    logs = plain_values(hydra.job_logging)
    return launch_run(config, choices, folder, logs)


def method(overrides: Iterable[str]) -> str:
    """The overrides that a run's result may come from, ``loss=focal sampler=ohem``, in one order;
    "defaults" where there are none. Runs that have the same differ in seeds and folds only."""
    keys = {text: text.lstrip("+~").partition("=")[0] for text in overrides}
    kept = sorted(text for text, key in keys.items() if not NOT_METHOD.fullmatch(key))
    return shlex.join(kept) or "defaults"


def check_launcher(config: dict[str, Any], sweep: bool, overrides: list[str]) -> None:
    """Raise ConfigError where the processes that torchrun or srun started cannot be one run."""
    here = detect_launcher()
    if here is None:
        return
    if sweep:
        raise ConfigError(
            "-m under torchrun or srun: start each run by itself, or use trainer.devices=N, which "
            "starts the processes of each run of a sweep"
        )
    if not any(text.startswith(("run_name=", "hydra.run.dir=")) for text in overrides):
        raise ConfigError(
            "under torchrun or srun each process would make a folder of its own: add run_name=NAME"
        )
    if config["trainer"]["devices"] not in (1, here.size):
        raise ConfigError(
            f"trainer.devices={config['trainer']['devices']}, but the launcher started {here.size}"
        )


def main() -> None:
    """Entry point."""
    # A lost connection ends in one line here; torch's C++ code would print its stack before it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    command("train", train, run_folder=True)


if __name__ == "__main__":
    main()
