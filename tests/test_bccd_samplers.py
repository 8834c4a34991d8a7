"""The study of experiments/bccd_samplers: what its own sweep runs."""

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

pytest.importorskip("scipy")

from experiments.report.csv_files import read_csv
from experiments.report.runs import LOSS, Run
from frcnn.config.compose import CONF

STUDY = Path(__file__).parents[1] / "experiments/bccd_samplers"
OWN = STUDY / "conf"
VARIANTS = sorted(file.stem for file in (OWN / "matched").glob("*.yaml"))
GROUPS = ("sampler", "loss", "box_loss")
# The loss terms that a group changes at a site.
TERMS = {
    ("sampler", "rcnn"): {"classifier", "box_reg"},
    ("sampler", "rpn"): {"objectness", "rpn_box_reg"},
    ("loss", "rcnn"): {"classifier"},
    ("loss", "rpn"): {"objectness"},
    ("box_loss", "rcnn"): {"box_reg"},
    ("box_loss", "rpn"): {"rpn_box_reg"},
}
TERM = {
    ("rcnn", "class"): "classifier",
    ("rcnn", "box"): "box_reg",
    ("rpn", "class"): "objectness",
    ("rpn", "box"): "rpn_box_reg",
}
MOST = 1.5  # times the baseline's mean loss, or one over it, that is left as it is


def composed(*line: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        own = f"hydra.searchpath=[file://{OWN}]"
        found = hydra.compose("train", [own, "run_name=x", *line])
    return OmegaConf.to_container(found, resolve=True)


def preset(variant: str) -> str:
    """``focal`` -> ``loss=focal``; the control is random sampling."""
    if variant == "random_as_ohem":
        return "sampler=random"
    folder = Path(CONF) / "preset"
    (group,) = [group for group in GROUPS if (folder / group / f"{variant}.yaml").exists()]
    return f"{group}={variant}"


def weights(variant: str) -> dict[str, float]:
    """Of the terms whose weight is not one."""
    found = composed("sweep=bccd_matched", f"+matched={variant}")["loss_weight"]
    return {
        TERM[site, part]: weight
        for site, parts in found.items()
        for part, weight in parts.items()
        if weight != 1
    }


@pytest.mark.parametrize("study", ["map", "bccd", "one-stage"])
def test_make_starts_every_sweep_of_a_study(study: str) -> None:
    """Hydra takes its own options before a sweep's values, and none after them."""
    line = ["make", "-n", f"study-{study}", "WITH=hydra/launcher=cores", "DATA=DIR"]
    root = Path(__file__).parents[1]
    said = subprocess.run(line, cwd=root, capture_output=True, text=True, check=True).stdout
    commands = [shlex.split(line) for line in said.splitlines() if "frcnn.train" in line]
    asked = [get_args_parser().parse_args(command[3:]) for command in commands]
    assert all(own.multirun for own in asked)
    told = [value for own in asked for value in own.overrides if value.startswith("sweep=")]
    studied = ["samplers_bccd", "losses_bccd", "box_losses_bccd", "bccd_matched"]
    studied += ["samplers_bccd", "losses_bccd"]
    sweeps = {
        "map": ["imbalance_map"],
        "bccd": studied,
        "one-stage": ["one_stage", "one_stage_rpn"],
    }
    assert told == [f"sweep={name}" for name in sweeps[study]]
    for own in asked:
        folder = f"file://{root / own.config_dir}"
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            first = [text.partition(",")[0] for text in own.overrides if "launcher" not in text]
            more = ["+condition=centre", "+method=random"] if study == "map" else []
            hydra.compose("train", [f"hydra.searchpath=[{folder}]", *first, *more])


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_matched_run_is_its_preset_with_other_weights(name: str) -> None:
    usual = composed("experiment=bccd_study", preset(name))
    matched = composed("sweep=bccd_matched", f"+matched={name}", "run_name=x")
    assert matched.pop("loss_weight") != usual.pop("loss_weight")
    assert matched == usual


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, float]]:
    """Of each preset's run of seed 0 its loss terms, times those of random sampling."""
    found = [run for run in read_csv(STUDY / "runs.csv") if run.seed == 0 and run.figures]
    losses = {run.name.partition("_seed")[0].replace("-", "="): terms(run) for run in found}
    base = losses.pop("sampler=random")
    return {
        name: {term: value / base[term] for term, value in own.items()}
        for name, own in losses.items()
        if not name.startswith("matched")
    }


def terms(run: Run) -> dict[str, float]:
    return {k.removeprefix(LOSS): v for k, v in run.figures.items() if k.startswith(LOSS)}


def defined(name: str, usual: Mapping[str, Any]) -> set[str]:
    """The terms that a preset changes."""
    own = composed("experiment=bccd_study", name)
    return set().union(*(t for (g, site), t in TERMS.items() if own[g][site] != usual[g][site]))


@pytest.mark.slow
def test_every_preset_of_another_scale_has_a_variant_with_it_undone(
    alone: dict[str, dict[str, float]],
) -> None:
    presets = {preset(name): name for name in VARIANTS if name != "random_as_ohem"}
    usual = composed("experiment=bccd_study")
    assert len(alone) == 20 and presets.keys() <= alone.keys()
    for name in alone.keys() - {"sampler=guided_all"}:  # whose terms are tied to each other
        off = {term for term in defined(name, usual) if not 1 / MOST <= alone[name][term] <= MOST}
        own = weights(presets[name]) if name in presets else {}
        assert own.keys() == off, name
        for term, weight in own.items():
            assert weight * alone[name][term] == pytest.approx(1, rel=0.02), (name, term)


def test_the_control_has_losses_as_large_as_ohem_s(alone: dict[str, dict[str, float]]) -> None:
    own = weights("random_as_ohem")
    assert own.keys() == {"classifier", "box_reg"}
    for term, weight in own.items():
        assert weight == pytest.approx(alone["sampler=ohem"][term], rel=0.02)
