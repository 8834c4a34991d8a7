"""What a report makes of the detections that runs leave, and what it says where it cannot."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from fabricated import fabricate, seen_sweep, sweep, with_detections
from tiny import SMALL, call, small_network

import experiments.report.__main__
from experiments.report import detections, images, markdown
from experiments.report.__main__ import main
from experiments.report.csv_files import read_csv, write_csv
from experiments.report.detections import ap_of_draws, looked_at, with_draws
from experiments.report.figures import errors, figures, precision
from experiments.report.runs import Run, read
from experiments.report.sentences import facts, headline, sentences
from experiments.report.study import Study, study
from experiments.report.tables import tables
from frcnn import train

KINDS = ["classification", "localisation", "both", "duplicate", "background", "missed"]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "DRAWS", 50)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of the baseline and of ohem, whose boxes are much better."""
    return seen_sweep(tmp_path_factory.mktemp("seen"), ohem=1.0)


def report(monkeypatch: pytest.MonkeyPatch, *arguments: object, pictures: bool = False) -> None:
    if not pictures:
        monkeypatch.setattr(experiments.report.__main__, "figures", lambda study: {})
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    main()


def of(folder: Path) -> Study:
    return study(looked_at(read(folder), folder))


def only(folder: Path) -> Run:
    (run,) = looked_at(read(folder), folder)
    return run


def test_all_of_it_is_made_again_from_the_csvs(
    seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(monkeypatch, seen, "--out", tmp_path, pictures=True)
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    pictures = {"differences.png", "curves.png", "precision.png", "errors.png"}
    assert made.keys() == {"runs.csv", "runs.npz", "report.md", "report.html"} | pictures
    for name in set(made) - {"runs.csv", "runs.npz"}:
        (tmp_path / name).unlink()
    monkeypatch.setitem(sys.modules, "experiments.report.detections", None)  # no torch, no data
    report(monkeypatch, tmp_path / "runs.csv", pictures=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == made


def test_a_study_goes_on_from_its_csv_where_folders_are_gone(
    seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sweeps on two machines, of the second all that is left is the report, give one table."""
    report(monkeypatch, seen, "--out", tmp_path / "whole")
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    for seed in (0, 1):
        here, gone = tmp_path / f"here{seed}", tmp_path / f"gone{seed}"
        for run in seen.glob("*/"):
            shutil.copytree(run, (gone if run.name.endswith(str(seed)) else here) / run.name)
        report(monkeypatch, gone, "--out", tmp_path / "first")
        before = tmp_path / "first/runs.csv"
        report(monkeypatch, here, "--also", before, "--out", tmp_path / "merged")
        assert {file.name: file.read_bytes() for file in (tmp_path / "merged").iterdir()} == whole
    report(monkeypatch, seen, "--also", tmp_path / "whole/runs.csv", "--out", tmp_path / "twice")
    assert {file.name: file.read_bytes() for file in (tmp_path / "twice").iterdir()} == whole


def test_what_an_earlier_csv_says_is_not_lost_on_a_new_method(
    seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A term that only one of both has is a term of all; the CSV's own figures are kept."""
    new = fabricate(tmp_path / "here/libra_0", "sampler=random", "loss=libra", "seed=0")
    config = yaml.safe_load((seen / "random_0/.hydra/config.yaml").read_text())
    (new / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    report(monkeypatch, seen, "--out", tmp_path / "before")
    also = ("--also", tmp_path / "before/runs.csv")
    report(monkeypatch, tmp_path / "here", *also, "--out", tmp_path / "after")
    methods = study(read_csv(tmp_path / "after/runs.csv")).methods
    assert {*methods} == {"sampler=random", "sampler=ohem", "loss=libra"}
    kept = images.read_draws(tmp_path / "before/runs.csv")
    assert images.read_draws(tmp_path / "after/runs.csv").keys() == kept.keys()


def test_runs_of_a_csv_and_of_a_folder_have_the_same_terms_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the CSV's runs were told, or differ in, is told of the folder's as well."""
    runs = tmp_path / "runs"
    sweep(runs, seeds=2, ohem=2.0)
    for seed in (0, 1):
        fabricate(runs / f"loss_{seed}", "sampler=random", "loss=focal", f"seed={seed}")
    fabricate(runs / "long_0", "sampler=libra", "trainer.epochs=24", "optimizer.lr=0.01")
    report(monkeypatch, runs, "--out", tmp_path / "whole")
    shutil.copytree(runs / "ohem_1", tmp_path / "here/ohem_1")
    shutil.move(runs / "ohem_1", tmp_path / "ohem_1")
    report(monkeypatch, runs, "--out", tmp_path / "first")
    also = ("--also", tmp_path / "first/runs.csv")
    report(monkeypatch, tmp_path / "here", *also, "--out", tmp_path / "merged")
    assert (tmp_path / "merged/runs.csv").read_text() == (tmp_path / "whole/runs.csv").read_text()


@pytest.mark.parametrize("what", ["source", "file"])
def test_also_is_a_csv_beside_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    sweep(tmp_path / "runs", ohem=2.0)
    missing = tmp_path / "missing.csv"
    (tmp_path / "runs.csv").write_text("a\n")
    source = tmp_path / ("runs.csv" if what == "source" else "runs")
    with pytest.raises(SystemExit) as said:
        report(monkeypatch, source, "--also", missing)
    wanted = "--also adds to a folder of runs"
    assert str(said.value) == (
        wanted if what == "source" else f"{missing}: No such file or directory"
    )


def test_errors_and_precision_are_in_tables_and_figures(seen: Path) -> None:
    found = of(seen)
    assert found.problems == []
    table = next(t for t in tables(found) if t.title == "What errors cost")
    assert table.columns == ["method", "seeds", *KINDS]
    costs = {row[0]: [float(cell.split(" ± ")[0]) for cell in row[2:]] for row in table.rows}
    assert costs["sampler=ohem"][1] < costs["sampler=random"][1]  # boxes in the wrong place
    panels = errors(found, list(found.methods)).axes
    assert [axes.get_title() for axes in panels] == KINDS
    for number, axes in enumerate(panels):
        widths = [bar.get_width() for bar in axes.patches]
        expected = [costs[m][number] for m in ("sampler=random", "sampler=ohem")]
        assert widths == pytest.approx(expected, abs=0.051)
    (axes,) = precision(found, list(found.methods)).axes
    for line, (method, iou) in zip(
        axes.lines,
        [(m, iou) for m in ("sampler=random", "sampler=ohem") for iou in ("50", "75")],
        strict=True,
    ):
        runs = found.methods[method].values()
        # Interpolated precision over all recalls is AP.
        expected = np.mean([100 * run.figures[f"AP{iou}"] for run in runs])
        assert np.mean(line.get_ydata()) == pytest.approx(expected, abs=0.05)
    assert {"precision", "errors"} < figures(found).keys()


def test_the_images_error_is_added_where_all_runs_have_detections(seen: Path) -> None:
    found = of(seen)
    runs, draws = with_draws(read(seen), seen)
    assert runs == looked_at(read(seen), seen) and draws.keys() == {run.name for run in runs}
    assert all(np.array_equal(own, ap_of_draws(seen / name)) for name, own in draws.items())
    known = replace(found, draws=draws)
    scales = [of_.differences["sampler=ohem"].scale for of_ in (found, known)]
    assert scales[1] > scales[0]
    assert "The intervals cover new seeds and new test images." in sentences(known)
    del draws["ohem_1"]
    assert replace(found, draws=draws).over_images("sampler=ohem") is None
    lacking = "not new test images: some runs have no stored detections."
    assert any(text.endswith(lacking) for text in sentences(found))
    assert "12 test images" in facts(found)


def test_two_methods_share_the_error_of_the_baseline_on_the_images(tmp_path: Path) -> None:
    """Where the baseline is lucky with the images, both differences are too small."""
    folder = seen_sweep(tmp_path, ohem=1.0, pisa=1.0)
    runs, draws = with_draws(read(folder), folder)
    known = replace(study(runs), draws=draws)
    alone = study(runs).differences
    added = {m: d.errors - alone[m].errors for m, d in known.differences.items()}
    assert np.corrcoef(*added.values())[0, 1] > 0.3
    over = [known.over_images(method) for method in added]
    assert np.corrcoef(*added.values())[0, 1] == pytest.approx(np.corrcoef(*over)[0, 1], abs=0.05)


def test_each_run_is_matched_once(seen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matched: list[object] = []
    real = detections.match
    monkeypatch.setattr(detections, "match", lambda one: matched.append(one) or real(one))
    runs, draws = with_draws(read(seen), seen)
    assert len(matched) == len(runs) == len(draws) == 4


def test_equal_detections_have_equal_draws(seen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(seen, tmp_path / "runs")
    for name in ("detections.npz", "summary.json"):
        shutil.copy(folder / "random_0" / name, folder / "ohem_0" / name)
    assert np.array_equal(ap_of_draws(folder / "ohem_0"), ap_of_draws(folder / "random_0"))


def test_a_csv_without_what_is_new_still_reads(seen: Path, tmp_path: Path) -> None:
    write_csv(looked_at(read(seen), seen), tmp_path / "new.csv")
    with (tmp_path / "new.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    new = ("dAP50", "precision", "lacks", "peak", "loss", "made")
    old = [{k: v for k, v in row.items() if not k.startswith(new)} for row in rows]
    assert len(rows[0]) - len(old[0]) == 6 + 2 + 1 + 1 + 1 + 1
    with (tmp_path / "old.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, old[0])
        writer.writeheader()
        writer.writerows(old)
    found = study(read_csv(tmp_path / "old.csv"))
    assert found.problems == [] and headline(found) == headline(of(seen))
    assert [t.title for t in tables(found)] == [
        "Difference to sampler=random", "Cost", "Figures",
        *(f"{figure} by class" for figure in ("AP", "AP50", "AP75", "AP90", "AR")),
    ]  # fmt: skip
    assert figures(found).keys() == {"differences", "curves"}


def test_data_that_are_not_there_are_one_sentence_and_the_rest_stands(
    seen: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(seen, tmp_path / "runs")
    for file in folder.glob("*/.hydra/config.yaml"):
        config = yaml.safe_load(file.read_text())
        config["data"] = {"_target_": "frcnn.data.voc", "_partial_": True, "root": "gone"}
        config["data"] |= {"train_split": "train", "val_split": "val", "classes": ["a"]}
        file.write_text(yaml.safe_dump(config))
    found = of(folder)
    (problem,) = found.problems
    assert problem.startswith("Runs `random_0`, `random_1`, `ohem_0`, `ohem_1` have detections ")
    assert "that cannot be judged (UserError: gone" in problem
    assert with_draws(found.runs, folder)[1] == {}
    assert headline(found) == headline(of(seen)) and problem in markdown.page(found)
    assert figures(found).keys() == {"differences", "curves"}


def test_a_configuration_cannot_choose_what_code_runs(tmp_path: Path) -> None:
    run = with_detections(fabricate(tmp_path / "a", "sampler=random"), 1.0, 0)
    file = run / ".hydra/config.yaml"
    config = yaml.safe_load(file.read_text())
    trap = tmp_path / "trap"
    config["data"] = {"_target_": "os.mkdir", "_partial_": True, "path": str(trap)}
    file.write_text(yaml.safe_dump(config))
    assert "os.mkdir, which is not this project's code" in only(tmp_path).lacks
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04K\x01."])
def test_broken_detections_are_named(tmp_path: Path, content: bytes) -> None:
    run = with_detections(fabricate(tmp_path / "a", "sampler=random"), 1.0, 0)
    (run / "detections.npz").write_bytes(content)
    found = only(tmp_path)
    assert found.lacks.startswith("detections that cannot be judged (") and not found.precision
    assert "\n" not in found.lacks


def test_detections_of_other_data_than_the_summarys_are_named(tmp_path: Path) -> None:
    run = with_detections(fabricate(tmp_path / "a", "sampler=random"), 1.0, 0)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"AP": summary["AP"] + 0.01}))
    said = f"an AP of {summary['AP'] + 0.01:.4f}, while today's validation data give "
    assert only(tmp_path).lacks == f"{said}{summary['AP']:.4f}"


def test_data_that_follow_the_seed_are_those_of_the_run_s(tmp_path: Path) -> None:
    with_detections(fabricate(tmp_path / "run", "sampler=random", "seed=0"), 4.0, 0)
    file = tmp_path / "run/.hydra/config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"]["seed"] = "${seed}"  # 0, as it is by default
    file.write_text(yaml.safe_dump(config))
    (run,) = looked_at(read(tmp_path), tmp_path)
    assert run.lacks == "" and len(run.precision["50"]) == 101


def test_a_run_as_training_leaves_it(tmp_path: Path) -> None:
    line = [*SMALL, "trainer.max_steps=1", "trainer.epochs=1", "trainer.precision=bf16"]
    line += [f"hydra.run.dir={tmp_path / 'run'}"]
    with small_network():
        assert call(train.main, *line) == 0
    run = only(tmp_path)
    assert run.lacks == "" and [len(curve) for curve in run.precision.values()] == [101, 101]
    assert [name for name in run.figures if name.startswith("dAP50")] == [
        f"dAP50 {k}" for k in KINDS
    ]
    assert run.memory is not None and run.memory > 100
    (start,) = json.loads((tmp_path / "run/environment.json").read_text())
    assert start["precision"] == "bf16"
