"""The study of experiments/bccd_samplers: what its own sweep runs."""

from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from frcnn.config import CONF

OWN = Path(__file__).parents[1] / "experiments/bccd_samplers/conf"
# The preset of each variant that is no preset of loss= by its name.
OTHERS = {
    "ohem": "sampler=ohem",
    "random_as_ohem": "sampler=random",
    "carl": "box_loss=carl",
    "ghm_r": "box_loss=ghm_r",
}
TERMS = {"loss": {"classifier", "objectness"}, "box_loss": {"box_reg", "rpn_box_reg"}}


def composed(*line: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        own = f"hydra.searchpath=[file://{OWN}]"
        found = hydra.compose("train", [own, "run_name=x", *line])
    return OmegaConf.to_container(found, resolve=True)


@pytest.mark.parametrize("name", sorted(file.stem for file in (OWN / "matched").glob("*.yaml")))
def test_a_matched_run_is_its_preset_with_other_weights(name: str) -> None:
    chosen = OTHERS.get(name, f"loss={name}")
    preset = composed("experiment=bccd_study", chosen)
    matched = composed("sweep=bccd_matched", f"+matched={name}", "run_name=x")
    usual, own = preset.pop("loss_weight"), matched.pop("loss_weight")
    assert matched == preset
    changed = {term for term, weight in own.items() if weight != usual[term]}
    group = chosen.partition("=")[0]
    assert changed and changed <= TERMS.get(group, {"classifier", "box_reg"})  # a sampler's: RCNN


def test_the_control_is_the_inverse_of_ohem_s_weights() -> None:
    ohem, random = (
        composed("sweep=bccd_matched", f"+matched={name}")["loss_weight"]
        for name in ("ohem", "random_as_ohem")
    )
    for term, weight in ohem.items():
        assert weight * random[term] == pytest.approx(1, rel=0.01)
