"""The study of experiments/imbalance_map: what its sweep runs."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf
from tiny import call, small_network

from frcnn import train
from frcnn.build import dataset
from frcnn.config.compose import CONF
from frcnn.data import shape_images

OWN = Path(__file__).parents[1] / "experiments/imbalance_map/conf"
METHODS, CONDITIONS = (
    sorted(file.stem for file in (OWN / group).glob("*.yaml")) for group in ("method", "condition")
)


@lru_cache
def composed(condition: str, method: str) -> dict[str, Any]:
    """A run's configuration; its options by group under ``choices``."""
    line = ["sweep=imbalance_map", f"+condition={condition}", f"+method={method}"]
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        found = hydra.compose(
            "train", [f"hydra.searchpath=[file://{OWN}]", *line], return_hydra_config=True
        )
    choices = dict(found.hydra.runtime.choices)
    OmegaConf.set_struct(found, False)
    del found["hydra"]
    return {**OmegaConf.to_container(found, resolve=True), "choices": choices}


def test_a_method_is_its_preset() -> None:
    sweep = yaml.safe_load((OWN / "sweep/imbalance_map.yaml").read_text())
    assert sorted(sweep["hydra"]["sweeper"]["params"]["+method"].split(",")) == METHODS
    for method in METHODS:
        config = composed("centre", method)
        preset = "random" if method == "class_weights" else method
        assert config["choices"]["loss" if method == "focal" else "sampler"] == preset
    loss = composed("centre", "class_weights")["loss"]["rcnn"]
    assert (loss["class_weights"], loss["keep_scale"]) == ("data", True)


def test_conditions_lie_on_three_axes_through_the_centre() -> None:
    centre = composed("centre", "random")["data"]
    axes: dict[str, list[Any]] = {}
    for condition in CONDITIONS:
        data = composed(condition, "random")["data"]
        changed = [key for key, value in data.items() if value != centre[key]]
        assert len(changed) == (condition != "centre")
        for key in changed:
            axes.setdefault(key, [centre[key]]).append(data[key])
    for key, values in axes.items():  # one on each side of the centre
        assert sorted(values)[1] == centre[key], key
    assert axes.keys() == {"clutter", "imbalance", "object_size"}


def test_a_run_says_its_condition_and_method(tmp_path: Path) -> None:
    tiny = ["data.train_images=2", "data.val_images=1", "trainer.max_steps=1", "seed=0"]
    line = ["-m", "--config-dir", str(OWN), "sweep=imbalance_map", f"hydra.sweep.dir={tmp_path}"]
    with small_network():
        assert call(train.main, *line, "+condition=objects_small", "+method=ohem", *tiny) == 0
    folder = tmp_path / "objects_small/ohem_seed=0"
    choices = json.loads((folder / "summary.json").read_text())["choices"]
    assert (choices["condition"], choices["sampler/rcnn"]) == ("objects_small", "ohem")


def test_a_condition_changes_nothing_else_in_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many objects everywhere, and all the clutter that is asked for."""
    placed: list[Any] = []
    place = shape_images.free_box
    monkeypatch.setattr(shape_images, "free_box", lambda *a: placed.append(place(*a)) or placed[-1])
    objects = set()
    for condition in CONDITIONS:
        data = composed(condition, "random")["data"]
        images = dataset(data | {"train_images": 20}, "train")
        objects.add(len(images.labels))
        placed.clear()
        for index in range(20):
            images.load(index)
        found = sum(box is not None for box in placed)
        assert found >= 0.98 * data["clutter"] * 20, condition
    assert len(objects) == 1
