"""A report of fabricated runs says what is in them, and names what is wrong with them."""

import base64
import json
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

from experiments.report import forest, html, markdown
from experiments.report import study as study_module
from experiments.report.__main__ import main
from experiments.report.csv_files import merged, read_csv, write_csv
from experiments.report.figures import curves, figures
from experiments.report.runs import read
from experiments.report.sentences import facts, headline, sentences
from experiments.report.study import Plan, Study, study
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
        config["data"]["sampler"] = "repeat_factor"  # the order of the images is a method's own
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
        "The runs come from 2 commits: `01234567` (2), `01234567, fedcba98 with changes` (1).",
        "The runs used 2 different numbers of threads: `1` (2), `1, 2` (1).",
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
    assert of(tmp_path).problems == ["The runs come from 2 kinds of GPU: `none` (3), `B200` (1)."]


def test_runs_with_other_processor_instructions_are_named(tmp_path: Path) -> None:
    sweep(tmp_path, seeds=2, ohem=2.0)
    for number, run in enumerate(sorted(tmp_path.iterdir())):
        own = MADE | {"instructions": "AVX512" if number else "AVX2"}
        (run / "environment.json").write_text(json.dumps([own]))
    assert of(tmp_path).problems == [
        "The runs used 2 sets of processor instructions: `AVX512` (3), `AVX2` (1)."
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
    (problem,) = of(tmp_path).problems
    assert problem.startswith("Run `ohem_1` cannot be read (")


def folds_of(folder: Path, gain: float = 2.0) -> Path:
    """Two samplers on three folds that differ by 10 AP, with two seeds."""
    for name, more in (("random", 0.0), ("ohem", gain)):
        for fold in range(3):
            for seed in range(2):
                told = (f"sampler={name}", "data.folds=3", f"data.fold={fold}", f"seed={seed}")
                own = (more + 0.1 * fold * seed) / 100 if more else 0.0
                fabricate(folder / f"{name}_{fold}_{seed}", *told, ap=0.5 + fold / 10 + own)
    return folder


def test_folds_are_averaged_and_paired_as_seeds_and_said(tmp_path: Path) -> None:
    found = of(folds_of(tmp_path))
    assert found.problems == [] and list(found.methods) == ["sampler=random", "sampler=ohem"]
    values = found.values("sampler=random", "AP")
    assert {draw: round(value) for draw, value in values.items()} == {
        (seed, fold): 50 + 10 * fold for seed in range(2) for fold in range(3)
    }
    assert compare(found)["sampler=ohem"].difference.mean == pytest.approx(2.05)
    said = sentences(found)
    assert said[1].startswith("The runs are of 3 folds of the data. Folds are averaged")
    assert "`sampler=ohem` is better: +2.05 AP" in said[3]
    write_csv(read(tmp_path), tmp_path / "runs.csv")
    again = study(read_csv(tmp_path / "runs.csv"))
    assert sentences(again) == said and again.problems == []


def test_a_second_seed_on_the_same_images_adds_no_certainty(tmp_path: Path) -> None:
    """The same runs under another seed leave the error of the difference as it is."""
    scales = []
    for seeds in (1, 2):
        for name, more in (("random", (0.0, 0.0, 0.0)), ("ohem", (0.03, 0.01, -0.02))):
            for fold, gain in enumerate(more):
                for seed in range(seeds):
                    told = (f"sampler={name}", "data.folds=3", f"data.fold={fold}", f"seed={seed}")
                    run = tmp_path / f"{seeds}" / f"{name}{fold}{seed}"
                    fabricate(run, *told, ap=0.5 + fold / 10 + gain)
        found = compare(of(tmp_path / f"{seeds}"))["sampler=ohem"].difference
        scales.append(found.scale)
        assert found.n == 3 * seeds
    assert scales[0] == pytest.approx(scales[1]) and scales[0] == pytest.approx(1.45, abs=0.02)


def test_folds_without_a_baseline_are_said_and_missing_ones_named(tmp_path: Path) -> None:
    shutil.rmtree(folds_of(tmp_path) / "ohem_2_1")
    assert of(tmp_path).problems == ["`sampler=ohem` has no finished run of seed 1 on fold 2."]
    for run in tmp_path.glob("random*"):
        shutil.rmtree(run)
    (said,) = sentences(of(tmp_path))
    assert said.startswith("The runs are of 3 folds")


def test_runs_of_one_fold_are_of_seeds_alone(tmp_path: Path) -> None:
    for run in folds_of(tmp_path).glob("*_[12]_*"):
        shutil.rmtree(run)
    found = of(tmp_path)
    assert list(found.values("sampler=ohem", "AP")) == [0, 1] and found.folds == []
    assert not any("folds" in text for text in sentences(found))


def test_runs_of_another_number_of_folds_are_left_out(tmp_path: Path) -> None:
    told = ("sampler=ohem", "data.folds=5", "data.fold=0", "seed=0")
    fabricate(folds_of(tmp_path) / "ohem_of_5", *told)
    (problem,) = of(tmp_path).problems
    assert "data.folds=5 where most runs have 3; left out" in problem


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    main()


def cells(found: Study, title: str) -> dict[str, list[str]]:
    table = next(t for t in tables(found) if t.title.startswith(title))
    return {row[0]: list(row[1:]) for row in table.rows}


def test_a_known_difference_is_found_and_none_in_equal_runs(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, 5, ohem=6.0, libra=-6.0, all=0.0))
    assert found.baseline == "sampler=random" and found.problems == []
    said = sentences(found)
    assert said[0].startswith(
        "Compared with `sampler=random`, of 3 methods 1 is shown better, 1 is worse, 1 undecided. "
    )
    assert said[1].startswith("The intervals cover new seeds, not new test images: ")
    assert said[2].startswith("`sampler=ohem` is better: +6.04 AP (")
    assert said[3].startswith("`sampler=libra` is worse: -5.96 AP (")
    assert said[4] == "Undecided, which is not the same as equal: `sampler=all`."
    assert "To detect 0.5 AP with 80 % power: " in said[-1] and " when 3 are." in said[-1]


def test_a_difference_smaller_than_the_seeds_is_undecided_and_in_a_large_region_equivalent(
    tmp_path: Path,
) -> None:
    for seed, (base, own) in enumerate([(0.50, 0.53), (0.52, 0.50), (0.51, 0.53)]):
        fabricate(tmp_path / f"a{seed}", "sampler=random", f"seed={seed}", ap=base)
        fabricate(tmp_path / f"b{seed}", "sampler=ohem", f"seed={seed}", ap=own)
    found = of(tmp_path)
    assert compare(found)["sampler=ohem"].answer == "undecided"
    wide = replace(found, plan=Plan(equivalent=50.0))
    assert compare(wide)["sampler=ohem"].answer == "equivalent"
    assert "1 equivalent" in headline(wide) and "within ±50" in html.page(wide, {})
    common = replace(found, plan=Plan(common=True))
    assert "`--common`" in tables(common)[0].notes[1]


def with_seeds(folder: Path, **values: tuple[float, ...]) -> Path:
    """Samplers whose runs have these AP, in percent."""
    for name, own in values.items():
        for seed, ap in enumerate(own):
            fabricate(folder / f"{name}{seed}", f"sampler={name}", f"seed={seed}", ap=ap / 100)
    return folder


STEADY = {"random": (54, 55, 54.4), "ohem": (54.1, 55.2, 54.4), "libra": (54.0, 55.1, 54.5)}


def test_a_method_that_did_not_learn_is_said_to(tmp_path: Path) -> None:
    found = of(with_seeds(tmp_path, **STEADY, all=(20, 35, 28), c=(2,)))
    assert "2 did not learn" in headline(found)
    assert any(
        text.startswith("Did not learn") and "`sampler=c`" in text for text in sentences(found)
    )
    assert cells(found, "Difference")["sampler=all"] == [
        "-26.80", "–", "did not learn", "–", "–", "–", "3",
    ]  # fmt: skip


def test_a_family_is_shown_apart_and_corrected_with_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    for seed in range(3):
        for method, ap in {"a": 50.0, "b": 50.9, "c": 50.2, "d": 50.1, "e": 50.0}.items():
            told = [f"sampler={'random' if method == 'a' else method}"]
            told += ["matched=x"] if method in "cde" else []
            ap += rng.gauss(0, 0.2)
            fabricate(tmp_path / f"{method}{seed}", *told, f"seed={seed}", ap=ap / 100)
    found = of(tmp_path)
    apart = replace(found, family="matched")
    assert compare(apart) == compare(found)
    assert headline(apart).startswith("Compared with `sampler=random`, of 1 preset ")
    assert "of 3 variants (matched=)" in headline(apart)
    assert list(cells(apart, "Difference"))[0] == "sampler=b"
    with pytest.raises(SystemExit, match="--family mached: no compared method has"):
        called(monkeypatch, tmp_path, "--family", "mached")


def test_a_look_before_the_planned_seeds_is_said_to_be_one(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, 5, ohem=6.0))
    assert compare(found)["sampler=ohem"].answer == "better"
    early = replace(found, plan=Plan(seeds=8))
    assert compare(early)["sampler=ohem"].interval[0] < compare(found)["sampler=ohem"].interval[0]
    assert any("early look: 5 of 8 planned" in text for text in sentences(early))
    assert "The 5 planned seeds are there." in sentences(replace(found, plan=Plan(seeds=5)))
    assert any("No number of seeds was planned" in text for text in sentences(found))


@pytest.mark.parametrize(("seeds", "folds"), [(1, False), (0, True)])
def test_too_few_planned_seeds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, folds: bool
) -> None:
    """One is enough where the folds can be compared."""
    runs = folds_of(tmp_path) if folds else sweep(tmp_path, ohem=2.0)
    with pytest.raises(SystemExit, match=f"--planned-seeds {seeds}: a comparison takes at least"):
        called(monkeypatch, runs, "--planned-seeds", seeds)
    called(monkeypatch, runs, "--planned-seeds", seeds + 1)


def test_a_study_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = study_module.compared
    monkeypatch.setattr(study_module, "compared", lambda *a, **k: calls.append(a) or real(*a, **k))
    found = of(sweep(tmp_path, ohem=2.0))
    html.page(found, figures(found)), markdown.page(found), sentences(found)
    assert len(calls) == 1


def test_a_completed_run_of_a_csv_is_kept_where_the_folder_s_is_not(tmp_path: Path) -> None:
    sweep(tmp_path, seeds=2, ohem=2.0)
    done = read(tmp_path)
    cut = [replace(run, status="INTERRUPTED", figures={}) for run in done[:1]]
    assert merged(cut, done) == done
    again = [replace(run, seconds=7.0) for run in done[:1]]
    assert merged(again, done) == [*again, *done[1:]]
    assert merged(cut, cut) == cut and merged(done[1:], cut) == [*cut, *done[1:]]


def test_one_seed_says_nothing(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, seeds=1, ohem=9.0))
    assert headline(found).endswith("1 not tested.")
    assert cells(found, "Difference")["sampler=ohem"] == [
        "+9.00", "–", "not tested", "–", "–", "–", "1",
    ]  # fmt: skip
    assert cells(found, "Figures")["sampler=ohem"][:2] == ["1", "59.0"]


def test_runs_of_two_machines_are_not_compared_in_time(tmp_path: Path) -> None:
    sweep(tmp_path, seeds=2, ohem=2.0)
    for run in tmp_path.iterdir():
        records = [{"train/seconds_per_step": 0.5 + ("ohem" in run.name)}]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
        host = "b" if run.name == "ohem_1" else "a"
        (run / "environment.json").write_text(json.dumps([{**MADE, "host": host}]))
    found = of(tmp_path)
    assert cells(found, "Cost")["sampler=ohem"][1:3] == ["1.500 ± 0.000", "3.00"]
    assert found.problems[0].startswith("The runs come from 2 machines: ")
    assert facts(found).endswith("2 machines")


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
    assert back.difference.mean == pytest.approx(-there.difference.mean)
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
    ]
    assert sorted(found.methods["sampler=ohem"]) == [0, 1]
    assert all(problem in markdown.page(found) for problem in found.problems)


def test_holes_in_the_seeds_are_named_and_planned_unequal_numbers_are_not(tmp_path: Path) -> None:
    for name, seeds in {"random": 5, "ohem": 5, "pisa": 4, "libra": 3}.items():
        for seed in range(seeds):
            fabricate(tmp_path / f"{name}{seed}", f"sampler={name}", f"seed={seed}")
    shutil.rmtree(tmp_path / "libra1")
    assert of(tmp_path).problems == ["`sampler=libra` has no finished run of seed 1."]


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
    pages = {"runs.csv", "report.md", "report.html", "differences.png", "curves.png"}
    assert made.keys() == pages
    called(monkeypatch, tmp_path / "report/runs.csv", "--out", tmp_path / "again")
    again = {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    assert again == {name: made[name] for name in made if not name.endswith(".csv")}
    runs = read_csv(tmp_path / "report/runs.csv")
    write_csv(runs, tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == made["runs.csv"]
    assert runs[0].curve == {1: 0.26, 2: 0.52}
    assert ", of 1 method " in capsys.readouterr().out


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
    assert shown.open == [] and len(shown.links) == 1  # the forest plot is no picture there
    for link, png in zip(shown.links, [drawn["curves"]], strict=True):
        kind, data = link.split(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data) == png
        assert png.startswith(b"\x89PNG")
    texts = [*sentences(found), *found.problems]
    assert all(text.replace("`", "") in shown.text for text in texts)
    assert "sampler=<b>" in shown.text and "sampler=<i>" in shown.text
    for table in tables(found):
        assert all(cell in shown.text for row in table.rows for cell in row)


def test_the_forest_plot_shows_the_intervals(tmp_path: Path) -> None:
    found = of(sweep(tmp_path, 5, ohem=6.0, libra=-6.0))
    drawn = forest.forest(replace(found, plan=Plan(equivalent=1.0)))
    (axes,) = forest.figure(drawn, "sampler=random").axes
    shown = {label.get_text(): row for row, label in enumerate(axes.get_yticklabels())}
    assert list(shown) == ["sampler=ohem", "sampler=libra"]
    lines = axes.lines[3:]  # after zero and what could be seen
    for method, verdict in drawn.verdicts.items():
        line = lines[2 * shown[method]]
        assert tuple(line.get_xdata()) == verdict.interval
        assert line.get_color() == {"sampler=ohem": BLUE, "sampler=libra": VERMILLION}[method]
    shown = forest.html(drawn, "sampler=random")
    assert "▲</span> better, " in shown and "Green: within ±1 AP." in shown
    assert drawn.low < min(v.interval[0] for v in drawn.verdicts.values())


def test_a_method_that_failed_or_is_wild_does_not_hide_the_others(tmp_path: Path) -> None:
    found = of(with_seeds(tmp_path, **STEADY, all=(20, 35, 28)))
    drawn = forest.forest(found)
    assert drawn.low > -20 and drawn.high < 20
    (axes,) = forest.figure(drawn, "sampler=random").axes
    assert axes.texts[0].get_text() == "← -26.8"
    assert axes.texts[0].get_position() == (drawn.low, 2)


def test_the_ticks_of_a_forest_are_round_however_wide_it_is() -> None:
    for width in (0.3, 3.0, 25.0, 1800.0, 4e5):
        ticks = forest._ticks(forest.Forest([], {}, -width / 2, width / 2, None, None))
        step = ticks[1] - ticks[0]
        assert 3 <= len(ticks) <= 9 and 0 in ticks
        assert f"{step:.0e}"[0] in "125"


def test_the_page_sorts_opens_on_paper_and_loads_nothing(tmp_path: Path) -> None:
    page = html.page(of(sweep(tmp_path, ohem=2.0)), {})
    assert "http" not in page and "beforeprint" in page and "<details>" in page
    assert (
        page.index('class="facts"') < page.index('class="headline"') < page.index('class="forest"')
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
    assert done.stderr.startswith("scipy.") and done.stderr.count("\n") == 1
    assert done.stderr.endswith(" is missing: pip install -e '.[report]'\n")


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
