"""The study of experiments/one_stage: what its sweeps run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from experiments.report import __main__ as report
from experiments.report import markdown
from experiments.report.study import Plan, Study
from experiments.report.tables import compare, tables
from frcnn.config.compose import CONF

OWN = Path(__file__).parents[1] / "experiments/one_stage/conf"
ARMS = ("alpha", "focal", "ghm", "ohem", "pisa", "random", "ssd")
METHOD = ("site", "sampler", "loss", "box_loss")  # what an arm may change
SWEEPS = {"dense": "one_stage", "rpn": "one_stage_rpn"}
# Folder of the runs, and the method that the others are compared with.
REPORTS = {"dense": (OWN.parent, "dense=focal"), "rpn": (OWN.parent / "rpn", "rpn=random")}
README = (OWN.parent / "README.md").read_text()


def composed(*line: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        own = f"hydra.searchpath=[file://{OWN}]"
        found = hydra.compose("train", [own, "run_name=x", "data.root=x", *line])
    plain = OmegaConf.to_container(found, resolve=True)
    assert isinstance(plain, dict)
    return plain


def arm(site: str, name: str) -> dict[str, Any]:
    return composed(f"sweep={SWEEPS[site]}", f"+{site}={name}")


@pytest.mark.parametrize("site", SWEEPS)
def test_arms_differ_in_the_method_of_one_site_alone(site: str) -> None:
    assert sorted(file.stem for file in (OWN / site).glob("*.yaml")) == sorted(ARMS)
    base = arm(site, "focal" if site == "dense" else "random")
    seen = []
    for name in ARMS:
        own = arm(site, name)
        seen.append([own[group].pop(site) for group in METHOD])
        if site == "dense":  # the nodes of sites that RetinaNet lacks
            for group in METHOD:
                own[group] = {}
        else:
            assert own["sampler"]["rcnn"]["_target_"] == "samplers.Random"
        for group in METHOD:
            base[group].pop(site, None)
        expected = base | (dict.fromkeys(METHOD, {}) if site == "dense" else {})
        assert own == expected, name
    assert all(seen.count(parts) == 1 for parts in seen)


def test_both_networks_train_alike() -> None:
    one, two = composed("sweep=one_stage"), composed("sweep=one_stage_rpn")
    for group in ("data", "augmentation", "optimizer", "schedule", "trainer"):
        assert one[group] == two[group], group
    for key in ("backbone_width", "fpn_channels", "min_size", "max_size", "anchor_sizes"):
        assert one["model"][key] == two["model"][key], key


def test_the_baselines_are_what_the_networks_have_by_default() -> None:
    for site, name in (("dense", "focal"), ("rpn", "random")):
        own, stock = arm(site, name), composed(f"sweep={SWEEPS[site]}")
        for group in METHOD:
            assert own[group][site] == stock[group][site], group


def test_ssd_divides_both_terms_by_the_positives() -> None:
    for site in SWEEPS:
        own = arm(site, "ssd")
        assert own["sampler"][site]["ratio"] == 3
        assert {own[group][site]["per"] for group in ("loss", "box_loss")} == {"positive"}


def test_pisa_in_one_stage_weighs_the_positives_of_all_anchors() -> None:
    for site in SWEEPS:
        sampler = arm(site, "pisa")["sampler"][site]
        assert sampler["batch_size_per_image"] is None and sampler["isr_p"]
        assert not sampler["score_hlr"] and not sampler["isr_n"]


def seen(site: str) -> Study:
    folder, baseline = REPORTS[site]
    return replace(report.study_of_csv(folder / "runs.csv", baseline, folder), plan=Plan(seeds=3))


@pytest.mark.parametrize("site", SWEEPS)
def test_the_pages_are_made_from_the_runs(site: str) -> None:
    folder, found = REPORTS[site][0], seen(site)
    drawn = ["differences", "curves", "precision", "errors"]
    assert (folder / "report.md").read_text() == markdown.page(found, drawn)
    name = (folder / "runs.csv").relative_to(OWN.parents[2]).as_posix()
    _, _, after = README.partition(f"<!-- {name} -->\n")
    assert after.partition("<!-- end -->")[0] == markdown.markdown(tables(found)[0]) + "\n"
    assert {len(runs) for runs in found.methods.values()} == {3} and len(found.methods) == len(ARMS)


@pytest.mark.parametrize("site", SWEEPS)
def test_what_was_seen_holds(site: str) -> None:
    """Each method's difference and answer, as the README says them."""
    text = " ".join(README.split())
    found = compare(seen(site))
    for name in ARMS:
        if f"{site}={name}" != REPORTS[site][1]:
            verdict = found[f"{site}={name}"]
            assert f"{verdict.difference.mean:+.1f} AP, {verdict.answer}" in text, name


def test_mining_is_above_the_hardest_anchors_at_retinanet() -> None:
    found = compare(seen("dense"))
    assert found["dense=ssd"].difference.mean > found["dense=ohem"].difference.mean
