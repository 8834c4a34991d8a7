"""The study of experiments/bccd_samplers: what its own sweep runs."""

from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from frcnn.config import CONF

OWN = Path(__file__).parents[1] / "experiments/bccd_samplers/conf"
SAMPLERS = {"ohem": "sampler"}
BOX_LOSSES = {"carl": "box_loss", "ghm_r": "box_loss"}


def composed(*line: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        own = f"hydra.searchpath=[file://{OWN}]"
        found = hydra.compose("train", [own, "run_name=x", *line])
    return OmegaConf.to_container(found, resolve=True)


@pytest.mark.parametrize("name", sorted(file.stem for file in (OWN / "matched").glob("*.yaml")))
def test_a_matched_run_is_its_preset_with_other_weights(name: str) -> None:
    group = (SAMPLERS | BOX_LOSSES).get(name, "loss")
    preset = composed("experiment=bccd_study", f"{group}={name}")
    matched = composed("sweep=bccd_matched", f"+matched={name}", "run_name=x")
    usual, own = preset.pop("loss_weight"), matched.pop("loss_weight")
    assert matched == preset
    assert set(usual.values()) == {1} and own != usual
    parts = {"classifier": "loss", "objectness": "loss", "box_reg": "box_loss"}
    for term, weight in own.items():
        assert weight == 1 or name == "ohem" or parts[term] == group
