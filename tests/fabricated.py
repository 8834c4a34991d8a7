"""Run folders as training leaves them, without training: only what a report reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIG = {
    "sampler": {"rcnn": {"_target_": "samplers.random"}},
    "data": {"root": "data/bccd", "min_size": 192},
    "budget": {"rcnn": 64},
    "trainer": {"epochs": 2, "workers": 1, "clip_norm": 10.0},
    "optimizer": {"lr": 0.02},
}
CHOICES = {
    "experiment": None,
    "sampler": "random",
    "sampler/rcnn": "random",
    "loss": "cross_entropy",
    "box_loss": "smooth_l1",
    "data": "bccd",
    "hydra/launcher": "basic",
}


def fabricate(
    folder: Path, *overrides: str, ap: float = 0.5, status: str = "COMPLETED", **summary: Any
) -> Path:
    """A run of two epochs, AP as a fraction; ``summary`` replaces what it says by default."""
    config, choices = json.loads(json.dumps(CONFIG)), dict(CHOICES)
    config |= {"seed": 0, "run_name": folder.name}
    for text in overrides:
        _set(config, choices, *text.split("=", 1))
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    runtime = {"hydra": {"runtime": {"choices": choices}}}
    (folder / ".hydra/hydra.yaml").write_text(yaml.safe_dump(runtime))
    error = "RuntimeError: out of\nmemory" if status == "FAILED" else None
    record = {"status": status, "overrides": list(overrides), "error": error}
    (folder / "status.json").write_text(json.dumps(record))
    if status == "COMPLETED":
        _finish(folder, ap, {"seed": config["seed"], "choices": choices, **summary})
    return folder


def _set(config: dict[str, Any], choices: dict[str, Any], key: str, text: str) -> None:
    if key in choices:
        choices[key] = text
        if key == "sampler":
            choices["sampler/rcnn"] = text
            config["sampler"]["rcnn"]["_target_"] = f"samplers.{text}"
        return
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = yaml.safe_load(text)


def _finish(folder: Path, ap: float, more: Mapping[str, Any]) -> None:
    figures = {"AP": ap, "AP50": ap + 0.2, "AP75": ap + 0.1, "APs": None, "APm": ap, "APl": ap}
    classes = {name: {"AP": ap + d, "AP50": 0.9} for name, d in (("RBC", 0.1), ("WBC", -0.1))}
    summary = {**figures, "AR100": 0.6, "per_class": classes, "steps": 876, "seconds": 100.0}
    (folder / "summary.json").write_text(json.dumps(summary | dict(more)))
    records = [
        {"step": 1, "epoch": 1, "train/loss": 1.0},
        {"step": 438, "epoch": 1, "val/AP": ap / 2},
        {"step": 876, "epoch": 2, "val/AP": ap},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def sweep(folder: Path, seeds: int = 3, **gains: float) -> Path:
    """Random sampling, and samplers with a known gain of AP, in percent; seeds differ by 1 AP."""
    for name, gain in {"random": 0.0, **gains}.items():
        for seed in range(seeds):
            # What a method adds differs a little from seed to seed, but for the baseline.
            own = 0.1 * (seed % 2) if gain else 0.0
            ap = 0.5 + seed / 100 + (gain + own) / 100
            run = folder / f"{name}_{seed}"
            fabricate(run, f"sampler={name}", f"seed={seed}", ap=ap, seconds=100.0 + gain)
    return folder
