"""The studies of experiments/long_tail and experiments/label_noise: what their sweeps run."""

import json
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from tiny import SMALL, call, small_network

from experiments.report.runs import is_condition
from frcnn import train
from frcnn.config.compose import CONF
from frcnn.data import shapes

HERE = Path(__file__).parents[1] / "experiments"
TAIL, NOISE = HERE / "long_tail/conf", HERE / "label_noise/conf"
ARMS = [f"+tail={file.stem}" for file in sorted((TAIL / "tail").glob("*.yaml"))]
METHODS = [f"+method={file.stem}" for file in sorted((NOISE / "method").glob("*.yaml"))]
NOISES = sorted(file.stem for file in (NOISE / "noise").glob("*.yaml"))
KINDS = ("swapped_classes", "moved_boxes", "dropped_boxes")
# What a method may change.
METHOD = ("sampler", "loss", "box_loss", "assigner", "weigher")
ORDER = ("sampler", "repeat_threshold")


def composed(folder: Path, *line: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        found = hydra.compose("train", [f"hydra.searchpath=[file://{folder}]", "run_name=x", *line])
    plain = OmegaConf.to_container(found, resolve=True)
    assert isinstance(plain, dict)
    return plain


def split(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What makes the method of a run, and the rest."""
    own = {group: config.pop(group) for group in METHOD}
    own |= {f"data.{key}": config["data"].pop(key) for key in ORDER}
    return own, config


def test_arms_of_the_long_tail_differ_in_their_method_alone() -> None:
    assert len(ARMS) == 8
    own, rest = zip(*(split(composed(TAIL, "sweep=long_tail", arm)) for arm in ARMS), strict=True)
    assert all(one == rest[0] for one in rest)
    assert all(own.count(one) == 1 for one in own)
    plain, _ = split(composed(TAIL, "sweep=long_tail"))
    assert own[ARMS.index("+tail=random")] == plain


def test_the_long_tail_is_what_its_page_says() -> None:
    data = composed(TAIL, "sweep=long_tail")["data"]
    left_out = ("min_size", "max_size", "anchor_sizes", *ORDER)
    options = {k: v for k, v in data.items() if k[0] != "_" and k not in left_out}
    count = shapes("train", **options).class_images()
    groups = (count < 10).sum(), ((count >= 10) & (count < 100)).sum(), (count >= 100).sum()
    assert groups == (23, 29, 8)
    own, _ = split(composed(TAIL, "sweep=long_tail", "+tail=equalization"))
    assert ((count / 1000 < own["loss"]["rcnn"]["rare_below"]) == (count < 10)).all()


def test_the_order_of_the_images_is_a_method_to_the_report() -> None:
    assert not is_condition("data.sampler") and not is_condition("data.repeat_threshold")
    assert is_condition("data.swapped_classes") and is_condition("data.imbalance")


def test_methods_and_conditions_of_the_noise_are_apart() -> None:
    assert len(METHODS) == 6 and len(NOISES) == 7
    own, rest = zip(
        *(split(composed(NOISE, "sweep=label_noise", one)) for one in METHODS), strict=True
    )
    assert all(one == rest[0] for one in rest) and all(own.count(one) == 1 for one in own)
    base = composed(NOISE, "sweep=label_noise")
    assert all(base["data"].pop(kind) == 0 for kind in KINDS)
    for name in NOISES:
        found = composed(NOISE, "sweep=label_noise", f"+noise={name}")
        rates = {kind: found["data"].pop(kind) for kind in KINDS}
        assert found == base
        kind, _, percent = name.partition("_")
        hit = {key: int(percent) / 100 for key in KINDS if key.startswith(f"{kind}_")}
        assert rates == dict.fromkeys(KINDS, 0) | hit


def test_the_runs_by_epoch_are_those_of_the_study_whose_weights_stay() -> None:
    line = ("+noise=swapped_20", "+method=ohem")
    own, usual = (
        composed(NOISE, f"sweep={s}", *line) for s in ("label_noise_epochs", "label_noise")
    )
    trainer = {"eval_every": 1, "keep_checkpoints": True}
    assert own["trainer"] == usual["trainer"] | trainer
    assert {k for k in own if own[k] != usual[k]} <= {"trainer", "run_name"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        *(f"{TAIL} sweep=long_tail {arm}" for arm in ARMS),
        *(f"{NOISE} sweep=label_noise +noise=swapped_40 {method}" for method in METHODS),
    ],
    ids=lambda line: line.rpartition("=")[2],
)
def test_every_arm_trains_two_steps(tmp_path: Path, line: str) -> None:
    folder, *words = line.split()
    small = [text for text in SMALL if not text.startswith("data.num_objects")]
    more = ["hydra.mode=RUN", "trainer.max_steps=2", f"hydra.run.dir={tmp_path}"]
    with small_network():
        words.append("model=fasterrcnn_resnet18_fpn")
        assert call(train.main, "--config-dir", folder, *words, *small, *more) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 2
