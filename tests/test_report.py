"""A report of fabricated runs says what is in them, and names what is wrong with them."""

import base64
import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from fabricated import MADE, fabricate, sweep

from experiments.report import html, markdown
from experiments.report.__main__ import main
from experiments.report.csv_files import read_csv, write_csv
from experiments.report.figures import curves, differences, figures
from experiments.report.runs import read
from experiments.report.sentences import sentences
from experiments.report.statistics import seeds_needed
from experiments.report.study import Study, study
from experiments.report.tables import compare, made, tables
from experiments.style import BLUE, VERMILLION


def of(folder: Path, baseline: str | None = None) -> Study:
    return study(read(folder), baseline)


def test_settings_that_a_method_changes_beside_itself_are_named(tmp_path: Path) -> None:
    for seed in (0, 1):
        fabricate(tmp_path / f"a{seed}", "sampler=random", f"seed={seed}")
        run = fabricate(tmp_path / f"b{seed}", "sampler=ohem", f"seed={seed}", ap=0.6)
        config = yaml.safe_load((run / ".hydra/config.yaml").read_text())
        config["optimizer"]["lr"] = 0.005
        config["sampler"]["rcnn"]["alpha"] = 1
        (run / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    said = "optimizer.lr=0.005 where the baseline's runs have 0.02"
    assert of(tmp_path).problems[-1] == f"`sampler=ohem` has other settings too: {said}."


def test_runs_of_other_code_or_another_machine_are_named(tmp_path: Path) -> None:
    sweep(tmp_path, seeds=2, ohem=2.0)
    file = tmp_path / "ohem_1/environment.json"
    (start,) = json.loads(file.read_text())
    more = start | {"commit": "fedcba9876", "dirty": True, "started": "later", "threads": 2}
    file.write_text(json.dumps([start, more]))
    (tmp_path / "random_1/environment.json").unlink()
    found = of(tmp_path)
    assert found.problems == [
        "The runs have more than one value of commit: `01234567` (2), "
        "`01234567, fedcba98 with changes` (1).",
        "The runs have more than one value of threads: `1` (2), `1, 2` (1).",
    ]
    write_csv(read(tmp_path), tmp_path / "runs.csv")
    assert study(read_csv(tmp_path / "runs.csv")).problems == found.problems


def test_auto_is_the_precision_that_a_run_computed_in(tmp_path: Path) -> None:
    """The same words on the command line are other runs on a machine that computes in bf16."""
    sweep(tmp_path, ohem=2.0)
    for precision, name in (("bf16", "random_0"), ("fp32", "ohem_0")):
        for run in tmp_path.iterdir():
            told(run, "auto", "bf16" if run.name == name else "fp32")
        found = study(read(tmp_path))
        (problem,) = [text for text in found.problems if "other settings" in text]
        assert "trainer.precision=bf16 where most runs have fp32; left out" in problem
        told(tmp_path / name, precision, precision)
    told(tmp_path / "random_0", "fp32", "fp32")
    told(tmp_path / "ohem_0", "auto", "fp32")
    assert not study(read(tmp_path)).problems


def told(run: Path, precision: str, computed: str) -> None:
    """Give a fabricated run the precision that it was told and that it computed in."""
    config = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    config["trainer"]["precision"] = precision
    (run / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    (run / "environment.json").write_text(json.dumps([{**MADE, "precision": computed}]))


def test_a_gpu_and_none_are_two_machines(tmp_path: Path) -> None:
    sweep(tmp_path, seeds=2, ohem=2.0)
    file = tmp_path / "ohem_1/environment.json"
    (start,) = json.loads(file.read_text())
    file.write_text(json.dumps([start | {"gpu": {"name": "B200", "cuda": "13.0"}}]))
    assert of(tmp_path).problems == [
        "The runs have more than one value of gpu: `none` (3), `B200` (1)."
    ]


def test_runs_that_stop_when_nothing_is_gained_may_differ_in_steps(tmp_path: Path) -> None:
    for name in ("random", "ohem"):
        for seed in (0, 1):
            told = (f"sampler={name}", f"seed={seed}", "trainer.patience=3")
            fabricate(tmp_path / f"{name}{seed}", *told, steps=400 + 100 * seed)
    found = of(tmp_path)
    assert [len(runs) for runs in found.methods.values()] == [2, 2] and found.problems == []


def test_methods_that_one_label_fits_have_their_whole_names(tmp_path: Path) -> None:
    """A run of before an option was there lacks a term that the baseline has."""
    for seed in (0, 1):
        for name, ap in (("random", 0.5), ("ohem", 0.6)):
            told = (f"sampler={name}", "budget.rcnn=64", f"seed={seed}")
            fabricate(tmp_path / f"{name}{seed}", *told, ap=ap)
        run = fabricate(tmp_path / f"old{seed}", "sampler=ohem", f"seed={seed}", ap=0.2)
        config = yaml.safe_load((run / ".hydra/config.yaml").read_text())
        del config["budget"]
        (run / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    found = of(tmp_path, "sampler=random")
    assert {label: found.values(label, "AP")[0] for label in found.compared} == {
        "budget.rcnn=64 sampler=ohem": 60.0,
        "sampler=ohem": 20.0,
    }


@pytest.mark.parametrize("name", [".hydra/config.yaml", ".hydra/hydra.yaml", "summary.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "3"])
def test_a_file_that_was_cut_short_makes_one_run_unreadable(
    tmp_path: Path, name: str, content: str
) -> None:
    sweep(tmp_path, seeds=2, ohem=2.0)
    (tmp_path / "ohem_1" / name).write_text(content)
    (problem, missing) = of(tmp_path).problems
    assert problem.startswith("Run `ohem_1` cannot be read (")
    assert missing == "`sampler=ohem` has no finished run of seed 1."


def folds(folder: Path, gain: float = 2.0) -> Path:
    """Two samplers on three folds that differ by 10 AP, with two seeds."""
    for name, more in (("random", 0.0), ("ohem", gain)):
        for fold in range(3):
            for seed in range(2):
                told = (f"sampler={name}", "data.folds=3", f"data.fold={fold}", f"seed={seed}")
                own = (more + 0.1 * fold * seed) / 100 if more else 0.0
                fabricate(folder / f"{name}_{fold}_{seed}", *told, ap=0.5 + fold / 10 + own)
    return folder


def test_folds_are_averaged_and_paired_as_seeds_and_said(tmp_path: Path) -> None:
    found = of(folds(tmp_path))
    assert found.problems == [] and list(found.methods) == ["sampler=random", "sampler=ohem"]
    values = found.values("sampler=random", "AP")
    assert {draw: round(value) for draw, value in values.items()} == {
        (seed, fold): 50 + 10 * fold for seed in range(2) for fold in range(3)
    }
    assert compare(found)["sampler=ohem"].difference.spread.mean == pytest.approx(2.05)
    said = sentences(found)
    assert said[1].startswith("The runs are of 3 folds of the data. Folds are averaged")
    assert "better than the baseline with 6 seeds: +2.05 AP" in said[2]
    write_csv(read(tmp_path), tmp_path / "runs.csv")
    again = study(read_csv(tmp_path / "runs.csv"))
    assert sentences(again) == said and again.problems == []


def test_folds_without_a_baseline_are_said_and_missing_ones_named(tmp_path: Path) -> None:
    shutil.rmtree(folds(tmp_path) / "ohem_2_1")
    assert of(tmp_path).problems == ["`sampler=ohem` has no finished run of seed 1 on fold 2."]
    for run in tmp_path.glob("random*"):
        shutil.rmtree(run)
    (said,) = sentences(of(tmp_path))
    assert said.startswith("The runs are of 3 folds")


def test_runs_of_one_fold_are_of_seeds_alone(tmp_path: Path) -> None:
    for run in folds(tmp_path).glob("*_[12]_*"):
        shutil.rmtree(run)
    found = of(tmp_path)
    assert list(found.values("sampler=ohem", "AP")) == [0, 1] and found.folds == []
    assert not any("folds" in text for text in sentences(found))


def test_runs_of_another_number_of_folds_are_left_out(tmp_path: Path) -> None:
    told = ("sampler=ohem", "data.folds=5", "data.fold=0", "seed=0")
    fabricate(folds(tmp_path) / "ohem_of_5", *told)
    (problem,) = of(tmp_path).problems
    assert "data.folds=5 where most runs have 3; left out" in problem


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    main()


def cells(found: Study, title: str) -> dict[str, list[str]]:
    table = next(t for t in tables(found) if t.title.startswith(title))
    return {row[0]: list(row[1:]) for row in table.rows}


def test_a_known_difference_is_found_and_none_in_equal_runs(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, ohem=2.0, libra=-2.0, all=0.0))
    assert found.baseline == "sampler=random" and found.problems == []
    baseline, *told, none, needed = sentences(found)
    assert baseline == "The baseline is `sampler=random`."
    assert [text.partition(" AP,")[0] for text in [*told, none]] == [
        "`sampler=libra` is worse than the baseline with 3 seeds: -1.97",
        "`sampler=ohem` is better than the baseline with 3 seeds: +2.03",
        "`sampler=all` shows no difference to the baseline with 3 seeds: +0.00",
    ]
    assert "needs 3 seeds to show a difference of 0.5 AP" in needed


def test_a_difference_smaller_than_the_seeds_is_none(tmp_path: Path) -> None:
    for seed, (base, own) in enumerate([(0.50, 0.53), (0.52, 0.50), (0.51, 0.53)]):
        fabricate(tmp_path / f"a{seed}", "sampler=random", f"seed={seed}", ap=base)
        fabricate(tmp_path / f"b{seed}", "sampler=ohem", f"seed={seed}", ap=own)
    (_, said, needed) = sentences(of(tmp_path))
    # Differences 3, -2, 2: mean 1, std sqrt(7), half an interval 4.30265 sqrt(7 / 3) = 6.57.
    assert said.endswith("with 3 seeds: +1.00 AP, 95 % interval -5.57 to +7.57.")
    tell = "needs 222 seeds to show a difference of 0.5 AP."
    assert needed == f"At the common standard deviation (2.65) one pair alone {tell}"


def with_seeds(folder: Path, **values: tuple[float, ...]) -> Path:
    """Samplers whose runs have these AP, in percent."""
    for name, own in values.items():
        for seed, ap in enumerate(own):
            fabricate(folder / f"{name}{seed}", f"sampler={name}", f"seed={seed}", ap=ap / 100)
    return folder


STEADY = {"random": (54, 55, 54.4), "ohem": (54.1, 55.2, 54.4), "libra": (54.0, 55.1, 54.5)}


def test_the_seeds_needed_are_said_once_and_for_a_spread_of_its_own(tmp_path: Path) -> None:
    found = of(with_seeds(tmp_path, **STEADY, all=(44, 56, 50)))
    common, own = sentences(found)[-2:]
    # Differences -10, 1, -4.4: std 5.50. The common spread has two degrees of freedom a seed.
    verdicts = compare(found)
    std = verdicts["sampler=ohem"].difference.spread.std or 0.0
    seeds = (seeds_needed(0.5, std), seeds_needed(0.5, std, 3, 2))
    tell = "seeds to show a difference of 0.5 AP; with 3 methods"
    said = f"({std:.2f}) one pair alone needs {seeds[0]} {tell} that share it: {seeds[1]}."
    assert common.endswith(said)
    std = verdicts["sampler=all"].difference.spread.std or 0.0
    seeds = (seeds_needed(0.5, std), seeds_needed(0.5, std, 3))
    said = f"one pair alone needs {seeds[0]} {tell}: {seeds[1]}."
    assert own == f"At the standard deviation of `sampler=all` (5.50) {said}"
    assert ": here `sampler=all`." in tables(found)[0].notes[0]


def test_a_method_that_did_not_learn_is_said_to(tmp_path: Path) -> None:
    found = of(with_seeds(tmp_path, **STEADY, all=(20, 35, 28), pisa=(20, 21, 20.4, 1), c=(2,)))
    said = sentences(found)
    where = "the baseline has 54.5."
    assert (
        f"`sampler=all` did not learn with these settings: an AP of 27.7 over 3 seed(s); {where}"
        in said
    )
    assert (
        f"`sampler=c` did not learn with these settings: an AP of 2.0 over 1 seed(s); {where}"
        in said
    )
    (worse,) = (text for text in said if "sampler=pisa" in text)  # with its difference
    assert f"an AP of 15.6 over 4 seed(s); {where} `sampler=pisa` is worse than" in worse


def test_what_the_common_spread_tells_apart_stands_beside_each_pair_s_own_test(
    tmp_path: Path,
) -> None:
    found = of(with_seeds(tmp_path, **STEADY, pisa=(55.0, 56.2, 55.2)))
    p_common, p_alone = cells(found, "Difference")["sampler=pisa"][2:4]
    # Differences 1, 1.2, 0.8: t = 1 / (0.2 / sqrt 3), p by hand as with two degrees of freedom,
    # times three methods; the common spread has six.
    alone = 3 * (1 - math.sqrt(75 / 77))
    assert p_alone == f"{alone:.3f}" and p_common == "< 0.001"


def test_a_family_is_corrected_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    for seed in range(3):
        for method, ap in {"a": 50.0, "b": 50.9, "c": 50.2, "d": 50.1, "e": 50.0}.items():
            told = [f"sampler={'random' if method == 'a' else method}"]
            told += ["matched=x"] if method in "cde" else []
            ap += rng.gauss(0, 0.2)
            fabricate(tmp_path / f"{method}{seed}", *told, f"seed={seed}", ap=ap / 100)
    found = of(tmp_path)
    alone = replace(found, family="matched")
    together, apart = compare(found), compare(alone)
    b, *family = sorted(apart)[-1:] + sorted(apart)[:-1]
    one = {m: v.difference.p or 0.0 for m, v in apart.items()}
    assert b == "sampler=b" and together[b].p == pytest.approx(4 * one[b])
    assert apart[b].p == pytest.approx(one[b])
    assert min(apart[m].p for m in family) == pytest.approx(min(1, 3 * min(one[m] for m in family)))
    assert (
        "separately for the methods with `matched=` (3) and without it (1)"
        in tables(alone)[0].notes[0]
    )
    assert "apart;" not in tables(found)[0].notes[0]
    std = apart[b].difference.spread.std
    needed = f"with 3 methods that share it: {seeds_needed(0.5, std, 3, 4)}."
    assert sentences(alone)[-1].endswith(needed)
    with pytest.raises(SystemExit, match="--family mached: no compared method has"):
        called(monkeypatch, tmp_path, "--family", "mached")


def test_one_seed_says_nothing(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, seeds=1, ohem=9.0))
    assert "no comparison" in sentences(found)[1]
    assert cells(found, "Difference")["sampler=ohem"] == ["+9.00", *["–"] * 4, "1"]
    assert cells(found, "Figures")["sampler=ohem"][:2] == ["1", "59.0"]


def test_tables_by_hand(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, ohem=2.0))
    # 50, 51, 52 and 52, 53.1, 54; no object is small.
    ohem = ["3", "53.0 ± 1.0", "73.0 ± 1.0", "63.0 ± 1.0", "–", "53.0 ± 1.0", "53.0 ± 1.0"]
    assert cells(found, "Figures")["sampler=ohem"] == [*ohem, "60.0 ± 0.0"]
    assert cells(found, "AP by class")["sampler=random"] == ["3", "61.0 ± 1.0", "41.0 ± 1.0"]
    assert cells(found, "Cost")["sampler=ohem"] == ["3", "–", "–", "102 ± 0", "600 ± 100"]
    assert list(cells(found, "Figures")) == ["sampler=random", "sampler=ohem"]


def test_the_scale_of_a_loss_is_the_mean_of_its_records_times_the_baseline_s(
    tmp_path: Path,
) -> None:
    for name, own in (("random", (4.0, 2.0)), ("ohem", (9.0, 3.0))):
        for seed in (0, 1):
            run = fabricate(tmp_path / f"{name}{seed}", f"sampler={name}", f"seed={seed}")
            records = [{"train/loss_classifier": (1 + seed) * value} for value in own]
            more = [{"train/loss_classifier": 3.0}] if (name, seed) == ("ohem", 1) else []
            records += [*more, {"epoch": 1, "val/AP": 0.5}]
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = of(tmp_path)
    # 6 / 3 and (18 + 6 + 3) / 3 / 6.
    assert cells(found, "Scale") == {"sampler=ohem": ["2", "1.75 ± 0.35"]}
    write_csv(read(tmp_path), tmp_path / "runs.csv")
    assert tables(study(read_csv(tmp_path / "runs.csv"))) == tables(found)


def test_the_cost_of_a_step_is_its_median_over_the_run_which_no_pause_changes(
    tmp_path: Path,
) -> None:
    for name, own in (("random", (0.4, 21.0, 0.5)), ("ohem", (0.9, 0.7, 0.5, 0.7))):
        run = fabricate(tmp_path / name, f"sampler={name}", "seed=0")
        records = [{"train/seconds_per_step": value} for value in own]
        records += [{"epoch": 1, "val/AP": 0.5}]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = of(tmp_path)
    assert [row[:3] for row in cells(found, "Cost").values()] == [
        ["1", "0.500", "1.00"],
        ["1", "0.700", "1.40"],
    ]
    write_csv(read(tmp_path), tmp_path / "runs.csv")
    assert tables(study(read_csv(tmp_path / "runs.csv"))) == tables(found)


def test_swapped_baseline_negates_the_difference(tmp_path: Path) -> None:
    sweep(tmp_path, ohem=2.0)
    (there,) = compare(of(tmp_path)).values()
    (back,) = compare(of(tmp_path, "sampler=ohem")).values()
    assert there.interval is not None and back.interval is not None
    assert back.difference.spread.mean == pytest.approx(-there.difference.spread.mean)
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))
    assert back.p == pytest.approx(there.p)


def test_runs_that_did_not_end_and_missing_seeds_are_named(tmp_path: Path) -> None:
    sweep(tmp_path, seeds=2, ohem=2.0)
    for seed, status in ((2, "FAILED"), (3, "INTERRUPTED"), (4, "RUNNING")):
        fabricate(tmp_path / f"x{seed}", "sampler=ohem", f"seed={seed}", status=status)
    fabricate(tmp_path / "random_2", "sampler=random", "seed=2")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/status.json").write_text('{"status": "COMPLETED", "overrides": []}')
    found = of(tmp_path)
    assert found.problems[0].startswith("Run `odd` cannot be read (FileNotFoundError")
    assert found.problems[1:] == [
        "Run `x2` (`sampler=ohem`, seed 2) failed (RuntimeError: out of memory): left out.",
        "Run `x3` (`sampler=ohem`, seed 3) was interrupted: left out.",
        "Run `x4` (`sampler=ohem`, seed 4) runs, or was killed: left out.",
        "`sampler=ohem` has no finished run of seed 2.",
    ]
    assert sorted(found.methods["sampler=ohem"]) == [0, 1]
    assert all(problem in markdown.page(found) for problem in found.problems)


def test_the_fewer_are_named_those_that_lack_a_seed_or_those_that_have_it(tmp_path: Path) -> None:
    for name, seeds in {"random": 5, "ohem": 5, "pisa": 4, "libra": 3, "all": 3, "c": 3}.items():
        for seed in range(seeds):
            fabricate(tmp_path / f"{name}{seed}", f"sampler={name}", f"seed={seed}")
    shutil.rmtree(tmp_path / "libra1")
    assert of(tmp_path).problems == [
        "`sampler=libra` has no finished run of seed 1.",
        "`sampler=all`, `sampler=c`, `sampler=libra` have no finished run of seed 3.",
        "Only `sampler=random`, `sampler=ohem` have a finished run of seed 4.",
    ]


@pytest.mark.parametrize(
    ("override", "steps", "named"),
    [
        ("trainer.epochs=24", 876, "trainer.epochs=24 where most runs have 2"),
        ("data.min_size=256", 876, "data.min_size=256 where most runs have 192"),
        ("model.backbone_width=0.5", 876, "model.backbone_width=0.5 where most runs have 1"),
        ("data=coco", 876, "data=coco where most runs have bccd"),
        ("seed=3", 90, "steps=90 where most runs have 876"),
    ],
)
def test_other_conditions_are_named_and_not_averaged(
    tmp_path: Path, override: str, steps: int, named: str
) -> None:
    sweep(tmp_path, ohem=2.0)
    fabricate(tmp_path / "z", "sampler=ohem", "seed=3", override, ap=0.9, steps=steps)
    found = of(tmp_path)
    assert found.problems == [
        f"Run `z` (`sampler=ohem`, seed 3) has other settings: {named}; left out."
    ]
    assert sorted(found.methods["sampler=ohem"]) == [0, 1, 2]


def test_a_method_whose_settings_changed_is_not_averaged(tmp_path: Path) -> None:
    sweep(tmp_path, ohem=2.0)
    other = fabricate(tmp_path / "z", "sampler=ohem", "seed=3", "sampler.rcnn.nms_iou=0.5")
    status = other / "status.json"  # as if the option file had changed
    status.write_text(status.read_text().replace(', "sampler.rcnn.nms_iou=0.5"', ""))
    (problem,) = of(tmp_path).problems
    assert "sampler.rcnn.nms_iou=0.5 where most of its method have None; left out" in problem


def test_a_repeated_run_counts_once(tmp_path: Path) -> None:
    sweep(tmp_path, ohem=2.0)
    run = fabricate(tmp_path / "z", "sampler=ohem", "seed=0", ap=0.9)
    (start,) = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps([start | {"threads": 7}]))
    (problem,) = of(tmp_path).problems
    assert problem == (
        "Run `z` (`sampler=ohem`, seed 0) repeats run `ohem_0`, which is kept: left out."
    )


def test_names_places_and_speed_make_no_method(tmp_path: Path) -> None:
    sweep(tmp_path)
    fabricate(
        tmp_path / "z", "seed=3", "run_name=z", "data.root=/else", "trainer.workers=0", "wandb.x=1"
    )
    found = of(tmp_path)
    assert list(found.methods) == ["sampler=random"] and len(found.methods["sampler=random"]) == 4
    assert found.problems == [] and sentences(found) == []


def test_labels_say_where_a_method_differs_from_the_baseline(tmp_path: Path) -> None:
    fabricate(tmp_path / "a", "budget.rcnn=64", "trainer.clip_norm=10")
    fabricate(tmp_path / "b", "loss=focal", "loss.rcnn.gamma=1", "budget.rcnn=64")
    fabricate(tmp_path / "c", "sampler=ohem", "budget.rcnn=64", "trainer.clip_norm=10.0")
    found = of(tmp_path)
    assert found.baseline == "loss=cross_entropy sampler=random"
    assert found.compared == ["sampler=ohem", "loss=focal loss.rcnn.gamma=1"]


def test_runs_left_out_change_no_label(tmp_path: Path) -> None:
    sweep(tmp_path, ohem=2.0)
    fabricate(tmp_path / "y", "experiment=libra", "budget.rcnn=128", status="FAILED")
    fabricate(tmp_path / "z", "optimizer.lr=0.1", "trainer.epochs=24")
    found = of(tmp_path)
    assert list(found.methods) == ["sampler=random", "sampler=ohem"] and len(found.problems) == 2


def test_a_setting_that_refers_to_another_has_its_value(tmp_path: Path) -> None:
    sweep(tmp_path, ohem=2.0)
    for name, value in (("y", "${budget.rcnn}"), ("z", "64")):
        told = f"sampler.rcnn.batch_size_per_image={value}"
        fabricate(tmp_path / name, "sampler=all", told, f"seed={name == 'z':d}")
    found = of(tmp_path)
    label = "sampler=all sampler.rcnn.batch_size_per_image=64"
    assert sorted(found.methods[label]) == [0, 1]


def test_what_follows_the_seed_differs_from_seed_to_seed(tmp_path: Path) -> None:
    """Other images a seed: ``data.seed=${seed}``."""
    for name in ("random", "ohem"):
        for seed in (0, 1):
            told = (f"sampler={name}", f"seed={seed}", "data.seed=${seed}")
            fabricate(tmp_path / f"{name}{seed}", *told)
    found = of(tmp_path)
    assert found.problems == [] and [*found.methods] == ["sampler=random", "sampler=ohem"]
    assert all(sorted(runs) == [0, 1] for runs in found.methods.values())


def test_many_other_settings_are_counted(tmp_path: Path) -> None:
    sweep(tmp_path)
    fabricate(tmp_path / "z", *(f"data.option{i}=1" for i in range(6)), "seed=3")
    (problem,) = of(tmp_path).problems
    assert "data.option0=1 where most runs have None, data.option1=1" in problem
    assert problem.endswith("data.option3=1 where most runs have None and 2 more; left out.")


def test_a_missing_baseline_is_named_and_another_can_be_chosen(tmp_path: Path) -> None:
    for name in ("ohem", "libra"):
        fabricate(tmp_path / name, f"sampler={name}", "optimizer.lr=0.01")
    found = of(tmp_path)
    assert found.baseline is None and "There is no baseline" in found.problems[0]
    assert sentences(found) == [] and list(found.methods) == ["sampler=libra", "sampler=ohem"]
    assert of(tmp_path, "sampler=libra").baseline == "sampler=libra"
    with pytest.raises(LookupError, match="0 methods match; there are sampler=libra, sampler="):
        of(tmp_path, "sampler=pisa")


def test_the_csv_makes_the_same_page_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, ohem=2.0)
    fabricate(tmp_path / "x", "sampler=ohem", "seed=7", status="FAILED")
    fabricate(tmp_path / "z", "sampler=ohem", "seed=3", "trainer.epochs=24")
    called(monkeypatch, tmp_path)
    made = {file.name: file.read_bytes() for file in (tmp_path / "report").iterdir()}
    pages = {"runs.csv", "images.csv", "report.md", "report.html", "differences.png", "curves.png"}
    assert made.keys() == pages
    called(monkeypatch, tmp_path / "report/runs.csv", "--out", tmp_path / "again")
    again = {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    assert again == {name: made[name] for name in made if not name.endswith(".csv")}
    runs = read_csv(tmp_path / "report/runs.csv")
    write_csv(runs, tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == made["runs.csv"]
    assert runs[0].curve == {1: 0.26, 2: 0.52}
    assert "`sampler=ohem` is better" in capsys.readouterr().out


class Page(HTMLParser):
    """What a page shows and refers to; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_no_other_file(tmp_path: Path) -> None:
    sweep(tmp_path, ohem=2.0, libra=0.0)
    fabricate(tmp_path / "x", "sampler=<b>", "seed=0")
    fabricate(tmp_path / "y", "sampler=<i>", "seed=7", status="FAILED")
    found = of(tmp_path)
    drawn = figures(found)
    shown = Page(html.page(found, drawn))
    assert shown.open == [] and len(shown.links) == 2
    for link, png in zip(shown.links, drawn.values(), strict=True):
        kind, data = link.split(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data) == png
        assert png.startswith(b"\x89PNG")
    texts = [*sentences(found), *found.problems]
    assert all(text.replace("`", "") in shown.text for text in texts)
    assert "sampler=<b>" in shown.text and "sampler=<i>" in shown.text
    for table in tables(found):
        assert all(cell in shown.text for row in table.rows for cell in row)


def test_the_forest_plot_shows_the_intervals(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, ohem=2.0, libra=-2.0))
    verdicts = compare(found)
    (axes,) = differences(verdicts, "sampler=random").axes
    lines = axes.lines[1:]  # after the zero
    shown = {label.get_text(): lines[2 * i] for i, label in enumerate(axes.get_yticklabels())}
    for method, verdict in verdicts.items():
        assert tuple(shown[method].get_xdata()) == verdict.interval
    assert (shown["sampler=ohem"].get_color(), shown["sampler=libra"].get_color()) == (
        BLUE,
        VERMILLION,
    )


def test_a_spread_of_its_own_does_not_hide_the_others(tmp_path: Path) -> None:
    verdicts = compare(of(with_seeds(tmp_path, **STEADY, all=(20, 35, 28))))
    (axes,) = differences(verdicts, "sampler=random").axes
    low, high = axes.get_xlim()
    steady = [v.interval for m, v in verdicts.items() if m != "sampler=all"]
    ends = [end for interval in steady if interval for end in interval]
    assert low < min(ends) and max(ends) < high and high - low < 1.2 * (max(ends) - min(ends))
    (text,) = axes.texts  # -34, -20, -26.4
    assert text.get_text() == "← -26.8" and text.get_position() == (
        low,
        list(verdicts).index("sampler=all"),
    )


def test_curves_show_mean_and_spread_beside_the_baseline(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, ohem=2.0))
    (axes,) = curves(found).axes
    grey, blue = axes.lines
    assert list(grey.get_xdata()) == [1, 2]
    assert list(grey.get_ydata()) == pytest.approx([25.5, 51.0])
    assert list(blue.get_ydata()) == pytest.approx([(52 + 53.1 + 54) / 6, (52 + 53.1 + 54) / 3])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((25.0, 52.0))  # 51 +- 1, 25.5 +- 0.5


def test_curves_without_a_baseline_have_a_panel_a_method(tmp_path: Path) -> None:
    for i, name in enumerate(("ohem", "libra", "pisa", "all", "libra2")):
        fabricate(tmp_path / str(i), f"sampler={name}")
    panels = [axes for axes in curves(of(tmp_path)).axes if axes.get_visible()]
    assert len(panels) == 5 and all(len(axes.lines) == 1 for axes in panels)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "no such folder"),
        (".", "no run, which is a folder"),
        ("failed", "failed: no finished run\nRun `0` .*RuntimeError"),
        ("other.csv", "not the CSV of a report: it has no column run"),
    ],
)
def test_what_cannot_be_read_is_said_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    if name == "failed":
        fabricate(tmp_path / "failed/0", "sampler=ohem", status="FAILED")
    (tmp_path / "other.csv").write_text("method,AP\nohem,50\n")
    with pytest.raises(SystemExit, match=said):
        called(monkeypatch, tmp_path / name)
    assert not (tmp_path / "failed/report").exists()


def python(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[1]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)


def test_a_report_needs_no_torch() -> None:
    done = python("import sys, experiments.report.__main__; print('torch' in sys.modules)")
    assert done.stdout == "False\n"


def test_a_missing_extra_is_one_line() -> None:
    done = python("import sys; sys.modules['scipy'] = None; import experiments.report.__main__")
    assert done.returncode == 1
    assert done.stderr == "scipy.stats is missing: pip install -e '.[report]'\n"


@pytest.mark.parametrize(
    ("start", "said"),
    [("weights=COCO_V1", "weights COCO_V1"), ("weights_backbone=a.pth", "weights a.pth")],
)
def test_the_weights_that_runs_started_from_are_shown(
    start: str, said: str, tmp_path: Path
) -> None:
    for seed in (0, 1):
        fabricate(tmp_path / f"run{seed}", f"seed={seed}", f"model.{start}")
    (run, _) = found = read(tmp_path)
    assert run.made["weights"] == said.split()[1]
    assert said in made(found)
