"""Train a detector: ``python -m frcnn.train sampler=ohem``; ``--help`` lists what can be chosen."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from frcnn.config import command


def train(config: dict[str, Any], choices: dict[str, str], folder: Path) -> float | None:
    """One run; returns its best AP, for a sweeper to compare."""
    from frcnn.launch import (
        run_in_all,
    )  # torch takes seconds to load; --help and bad keys need none of it

    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN and config["wandb"]["group"] is None:
        config["wandb"]["group"] = Path(hydra.sweep.dir).name
    return run_in_all(config, choices, folder)


def main() -> None:
    """Entry point."""
    command("train", train)


if __name__ == "__main__":
    main()
