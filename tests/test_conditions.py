"""The map of differences by condition, from fabricated runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import yaml
from fabricated import fabricate

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from experiments.conditions.__main__ import main, page, runs_of
from experiments.conditions.figure import curves, figure
from experiments.conditions.map import make
from experiments.conditions.sentences import sentences
from experiments.conditions.tables import scale, table
from experiments.report.csv_files import read_csv, write_csv
from experiments.report.markdown import markdown
from experiments.report.runs import Run, read
from experiments.report.study import Plan
from experiments.report.verdicts import ALPHA, BETTER, EQUIVALENT, FAILED

KEYS = ("data.clutter", "data.imbalance")
SAMPLERS = ("random", "ohem", "pisa")
CENTRE = ("6", "10")
CONDITIONS = (CENTRE, ("0", "10"), ("16", "10"), ("6", "1"), ("6", "100"))


def fabricated_map(folder: Path, gains: dict[tuple[str, tuple[str, str]], float]) -> Path:
    """Three seeds of three samplers; AP 50, the gain given, what a seed shares, a small error."""
    rng = np.random.default_rng(0)
    for condition in CONDITIONS:
        shared = rng.normal(0, 0.05, 3)
        for sampler in SAMPLERS:
            for seed in range(3):
                ap = 0.5 + gains.get((sampler, condition), 0) / 100 + shared[seed]
                values = (f"{k}={v}" for k, v in zip(KEYS, condition, strict=True))
                fabricate(
                    folder / f"{sampler} {condition} {seed}",
                    f"sampler={sampler}",
                    f"seed={seed}",
                    *values,
                    ap=ap + rng.normal(0, 0.005),
                )
    return folder


def test_a_known_gain_is_found_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    gains = {("ohem", ("16", "10")): 8.0, ("pisa", ("6", "100")): -8.0}
    found = make(read(fabricated_map(tmp_path, gains)), KEYS)
    assert found.centre == CENTRE
    assert [[c[i] for c in axis] for i, axis in enumerate(found.axes)] == [
        ["0", "6", "16"],
        ["1", "10", "100"],
    ]
    told = {key for key, verdict in found.verdicts.items() if verdict.differs}
    assert told == {(("16", "10"), "sampler=ohem"), (("6", "100"), "sampler=pisa")}
    ends = ("data.clutter=16", "data.imbalance=100")
    first, *said_of, of_all, plan = sentences(found)
    assert plan.startswith("No number of seeds was planned")
    of_methods, of_axes = said_of[:2], said_of[2:]
    assert first.startswith("Over all conditions, of 2 methods 1 is shown better, 1 is worse.")
    assert of_all.startswith("The methods' differences do depend on the condition (analysis of")
    for said, how, where in zip(of_methods, ("better", "worse"), ends, strict=True):
        assert f": {how} over all conditions (" in said
        assert said.endswith(f"; {how} at {where}, undecided at 4 of 5 conditions.")
    assert [said.partition(":")[0] for said in of_axes] == [
        "`sampler=ohem` gains more at data.clutter=16 than at 0",
        "`sampler=pisa` gains less at data.imbalance=100 than at 1",
    ]
    bold = [cell for row in table(found).rows for cell in row if cell.startswith("**")]
    assert [round(float(cell.strip("*"))) for cell in bold] == [2, 8, -2, -8]


def test_equal_methods_show_no_difference(tmp_path: Path) -> None:
    found = make(read(fabricated_map(tmp_path, {})), KEYS)
    assert not any(verdict.differs for verdict in found.verdicts.values())
    assert not any(verdict.differs for verdict in found.overall.values())
    assert not any(verdict.differs for verdict in found.changes.values())
    none = "No method's difference is shown to change between the ends of an axis."
    assert sentences(found)[3] == none
    assert sentences(found)[4].startswith("The methods' differences are not shown to depend on the")


def test_a_change_along_an_axis_is_a_difference_of_differences_by_seed(tmp_path: Path) -> None:
    runs = read(fabricated_map(tmp_path, {("ohem", ("16", "10")): 4.0}))
    found = make(runs, KEYS).changes[0, "sampler=ohem"].difference
    ap = {r.name: 100 * r.figures["AP"] for r in runs}
    gains = [
        [ap[f"ohem {c} {seed}"] - ap[f"random {c} {seed}"] for c in (("0", "10"), ("16", "10"))]
        for seed in range(3)
    ]
    assert found.mean == pytest.approx(fmean(last - first for first, last in gains))
    assert found.n == 3


def test_over_all_conditions_a_small_gain_is_found(tmp_path: Path) -> None:
    gains = {("ohem", condition): 0.9 for condition in CONDITIONS}
    runs = read(fabricated_map(tmp_path, gains))
    found = make(runs, KEYS)
    assert not any(found.verdicts[c, "sampler=ohem"].differs for c in CONDITIONS)
    assert found.overall["sampler=ohem"].differs
    assert not found.overall["sampler=pisa"].differs
    ap = {(r.method["sampler"], r.name[-1], r.name): 100 * r.figures["AP"] for r in runs}
    by_seed = {
        (sampler, seed): fmean(v for (s, n, _), v in ap.items() if (s, n) == (sampler, seed))
        for sampler in SAMPLERS[:2]
        for seed in "012"
    }
    difference = found.overall["sampler=ohem"].difference
    wanted = fmean(by_seed["ohem", seed] - by_seed["random", seed] for seed in "012")
    assert difference.mean == pytest.approx(wanted)
    assert difference.n == 3  # seeds, not conditions


def test_what_a_method_does_to_one_condition_is_no_spread_over_all(tmp_path: Path) -> None:
    steady = make(read(fabricated_map(tmp_path / "a", {})), KEYS).overall["sampler=ohem"]
    gains = {("ohem", c): gain for c, gain in zip(CONDITIONS, (9, -9, 6, -6, 0), strict=True)}
    crossed = make(read(fabricated_map(tmp_path / "b", gains)), KEYS).overall["sampler=ohem"]
    assert crossed.difference.mean == pytest.approx(steady.difference.mean)
    assert crossed.difference.scale == pytest.approx(steady.difference.scale)


def test_the_table_goes_into_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabricated_map(tmp_path / "runs", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("a\n<!-- out/conditions.csv -->\nold\n<!-- end -->\nb\n")
    line = ["conditions", "runs", "--out", "out", "--page", "README.md", "--by", *KEYS]
    monkeypatch.setattr("sys.argv", line)
    main()
    shown = markdown(table(make(read(tmp_path / "runs"), KEYS)))
    wanted = f"a\n<!-- out/conditions.csv -->\n{shown}\n<!-- end -->\nb\n"
    assert (tmp_path / "README.md").read_text() == wanted


def test_a_seed_that_lacks_a_condition_is_not_in_the_mean(tmp_path: Path) -> None:
    folder = fabricated_map(tmp_path, {("ohem", CENTRE): 9.0})
    shutil.rmtree(folder / f"ohem {('16', '10')} 1")
    overall = make(read(folder), KEYS).overall
    assert overall["sampler=ohem"].difference.n == 2
    assert overall["sampler=pisa"].difference.n == 3


def test_the_csv_makes_the_same_map(tmp_path: Path) -> None:
    runs = read(fabricated_map(tmp_path / "runs", {("ohem", CENTRE): 3.0}))
    write_csv(runs, tmp_path / "runs.csv")
    again = make(read_csv(tmp_path / "runs.csv"), KEYS)
    assert table(again) == table(make(runs, KEYS))


def test_the_figure_has_a_panel_per_axis_and_boxes_differences(tmp_path: Path) -> None:
    gains = {("ohem", ("16", "10")): 8.0}
    panels = figure(make(read(fabricated_map(tmp_path, gains)), KEYS)).axes
    assert [axes.get_xlabel() for axes in panels] == ["conditions", *KEYS]
    assert [len(axes.patches) for axes in panels] == [1, 1, 0]
    texts = [[text.get_text() for text in axes.texts] for axes in panels]
    assert [len(found) for found in texts] == [2, 6, 6]
    assert float(texts[0][0]) == pytest.approx(8 / 5, abs=0.5)
    assert float(texts[1][2]) == pytest.approx(8, abs=1)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = fabricated_map(tmp_path, {})
    record = folder / f"ohem {CENTRE} 2" / "status.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "FAILED"}))
    found = make(read(folder), KEYS)
    (problem,) = found.problems
    assert problem == f"Run `ohem {CENTRE} 2` (`sampler=ohem`, seed 2) failed: left out."
    assert len(found.verdicts) == 10


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fabricated_map(tmp_path, {})
    monkeypatch.setattr("sys.argv", ["conditions", str(folder), "--by", *KEYS])
    main()
    out = folder / "report"
    assert {file.name for file in out.iterdir()} == {
        "conditions.csv",
        "conditions.html",
        "conditions.md",
        "conditions.png",
        "conditions_curves.png",
    }
    monkeypatch.setattr("sys.argv", ["conditions", str(folder), "--by", "data.size"])
    with pytest.raises(SystemExit, match="no two runs differ in it. They differ in data.clutter"):
        main()


def test_a_sweep_stopped_half_way_is_a_map_of_what_is_there(tmp_path: Path) -> None:
    folder = fabricated_map(tmp_path, {("ohem", CENTRE): 9.0})
    for run in folder.glob("* 2"):  # of the last seed nothing, of one condition no baseline
        shutil.rmtree(run)
    for seed in range(2):
        shutil.rmtree(folder / f"random {('0', '10')} {seed}")
    shutil.rmtree(folder / f"pisa {('16', '10')} 1")
    found = make(read(folder), KEYS)
    assert set(found.studies) == set(CONDITIONS) - {("0", "10")}
    assert any(
        "data.clutter=0, data.imbalance=10: There is no baseline" in p for p in found.problems
    )
    assert found.verdicts[("16", "10"), "sampler=pisa"].p is None
    assert "step-down Dunnett" in table(found).notes[1]


def test_without_a_centre_there_is_no_map(tmp_path: Path) -> None:
    folder = fabricated_map(tmp_path, {})
    for run in folder.glob(f"random {CENTRE} *"):
        shutil.rmtree(run)
    said = "the centre data.clutter=6, data.imbalance=10 has no baseline(.|\n)*There is no baseline"
    with pytest.raises(LookupError, match=said):
        make(read(folder), KEYS)


def test_the_scale_is_the_mean_over_conditions_and_seeds(tmp_path: Path) -> None:
    folder = fabricated_map(tmp_path, {})
    for run in folder.iterdir():  # 2 and 4 times as large under the centre and elsewhere
        sampler, condition, seed = run.name.split(" ", 1)[0], run.name, int(run.name[-1])
        times = {"ohem": 2 if str(CENTRE) in condition else 4}.get(sampler, 1)
        record = {"train/loss_classifier": (1.0 + seed) * times}
        more = {"epoch": 1, "val/AP": 0.5}
        (run / "metrics.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(more)}\n")
    found = make(read(folder), KEYS)
    rows = {row[0]: row[1:] for row in scale(found).rows}
    # Of five conditions one has 2, four have 4, with three seeds each.
    assert rows == {"sampler=ohem": ["3.60 ± 0.83"], "sampler=pisa": ["1.00 ± 0.00"]}
    assert "## Scale of the losses" in page(found)


def drawn(rng: np.random.Generator, gain: float) -> list[Run]:
    """Eight methods and three seeds under seven conditions, of which the first has five times the
    spread; the last method gains under the last condition."""
    found = []
    for condition in range(7):
        for method in range(8):
            for seed, noise in enumerate(rng.normal(0, 2.5 if condition == 0 else 0.5, 3)):
                ap = 50 + noise + gain * (condition == 6 and method == 7)
                own = {"sampler": "random" if method == 0 else str(method)}
                where = {"data.clutter": condition}
                run = Run(f"{condition} {method} {seed}", "COMPLETED", "", own, where, seed)
                found.append(replace(run, figures={"AP": ap / 100}))
    return found


@pytest.mark.slow
def test_an_unsteady_condition_neither_misleads_elsewhere_nor_hides_a_gain() -> None:
    # Of 20 maps of equal methods one would say something false at 5 %. Most say a gain of 5 AP.
    rng, false, found, depend = np.random.default_rng(0), 0, 0, 0
    for _ in range(20):
        same = make(drawn(rng, 0), KEYS[:1])
        false += any(verdict.differs for verdict in same.verdicts.values())
        depend += (same.depends or 0) <= ALPHA
        found += make(drawn(rng, 5), KEYS[:1]).verdicts[("6",), "sampler=7"].differs
    assert false <= 3 and found >= 14 and depend <= 4


def test_a_condition_that_lacks_a_method_is_named_and_the_baseline_keeps_its_name(
    tmp_path: Path,
) -> None:
    """The condition whose runs all have the same loss does not lose the term."""
    for clutter in (0, 3, 8):
        for told in ("sampler=random", "sampler=ohem", "loss=focal"):
            for seed in range(0 if (clutter, told) == (8, "loss=focal") else 3):
                more = [told, f"seed={seed}", f"data.clutter={clutter}"]
                run = tmp_path / f"{told} {clutter} {seed}"
                fabricate(run, "sampler=random", *more, ap=0.5 + seed / 100)
    found = make(read(tmp_path), KEYS[:1])
    base = "loss=cross_entropy sampler=random"
    assert found.baseline == base and found.overall.keys() == {"sampler=ohem"}
    assert found.problems == ["data.clutter=8: `loss=focal` has no finished run."]
    assert "`loss=focal`" in page(found)


def test_runs_without_a_key_and_of_another_length_are_named(tmp_path: Path) -> None:
    folder = fabricated_map(tmp_path, {})
    run = fabricate(folder / "odd", "sampler=random", "seed=0", f"{KEYS[0]}=6", f"{KEYS[1]}=10")
    config = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    del config["data"]["clutter"]
    (run / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    told = json.loads((folder / f"ohem {('6', '1')} 0/status.json").read_text())["overrides"]
    shutil.rmtree(folder / f"ohem {('6', '1')} 0")
    fabricate(folder / f"ohem {('6', '1')} 0", *told, "trainer.epochs=24")
    (long, lacks, hole) = make(read(folder), KEYS).problems
    assert long.endswith("trainer.epochs=24 where most runs have 2; left out.")
    assert lacks == "Run `odd` (`sampler=random`, seed 0) has no data.clutter: left out."
    assert hole.endswith("`sampler=ohem` has no finished run of seed 0.")


def test_conditions_may_differ_in_what_follows_their_key(tmp_path: Path) -> None:
    for epochs in (2, 4, 8):
        for sampler in ("random", "ohem"):
            for seed in range(3):
                told = (f"sampler={sampler}", f"seed={seed}", f"trainer.epochs={epochs}")
                run = tmp_path / f"{sampler} {epochs} {seed}"
                fabricate(run, *told, ap=0.5 + seed / 100, steps=100 * epochs)
    found = make(read(tmp_path), ("trainer.epochs",))
    assert len(found.studies) == 3 and len(found.runs) == 18
    assert found.problems == ["The conditions differ in steps too: 200 (6), 400 (6), 800 (6)."]


def test_an_unsteady_baseline_is_what_the_analysis_lacks() -> None:
    rng = np.random.default_rng(0)
    runs = [
        replace(run, figures={"AP": run.figures["AP"] + 0.2 * run.seed * (run.seed - 1)})
        if run.method["sampler"] == "random"
        else run
        for run in drawn(rng, 0)
    ]
    found = make(runs, KEYS[:1])
    assert "without `sampler=random`" in sentences(found)[-2]


def test_an_axis_may_have_none_numbers_and_lists() -> None:
    rng = np.random.default_rng(0)
    values = [[14, 24], None, 3, 0.5, "big", [8, 14]]
    runs = [
        replace(run, settings={"data.clutter": values[run.settings["data.clutter"]]})
        for run in drawn(rng, 0)
        if run.settings["data.clutter"] < 6
    ]
    (axis,) = make(runs, KEYS[:1]).axes
    assert [json.loads(value) for (value,) in axis] == [0.5, 3, [8, 14], [14, 24], "big", None]


def test_a_method_that_did_not_learn_at_one_end_is_not_tested_there(tmp_path: Path) -> None:
    found = make(read(fabricated_map(tmp_path, {("ohem", ("16", "10")): -30.0})), KEYS)
    assert found.changes[0, "sampler=ohem"].answer == FAILED
    assert found.changes[0, "sampler=pisa"].p is not None
    assert found.changes[1, "sampler=ohem"].p is not None
    assert (
        "(an AP below two thirds of the baseline's): `sampler=ohem` (data.clutter=16)."
        in table(found).notes[1]
    )


def test_conditions_off_the_axes_are_named(tmp_path: Path) -> None:
    folder = fabricated_map(tmp_path, {})
    for sampler in ("random", "ohem"):
        told = (f"sampler={sampler}", "seed=0", "data.clutter=0", "data.imbalance=100")
        fabricate(folder / f"{sampler} corner", *told)
    found = make(read(folder), KEYS)
    assert ("0", "100") not in found.studies
    assert "data.clutter=0, data.imbalance=100: lies on no axis: left out." in found.problems


def test_a_region_and_planned_seeds_are_those_of_the_report(tmp_path: Path) -> None:
    gains = {("ohem", condition): 8.0 for condition in CONDITIONS}
    runs = read(fabricated_map(tmp_path, gains))
    found = make(runs, KEYS, plan=Plan(equivalent=5.0, seeds=3))
    assert found.overall["sampler=ohem"].answer == BETTER
    assert found.overall["sampler=pisa"].answer == EQUIVALENT
    said = sentences(found)
    assert said[-1] == "The 3 planned seeds are there."
    assert any("`sampler=pisa`: equivalent over all conditions" in text for text in said)
    early = make(runs, KEYS, plan=Plan(seeds=5))
    assert sentences(early)[-1].startswith("This is an early look: 3 of 5 planned seeds.")
    half = early.overall["sampler=ohem"].interval[1] - early.overall["sampler=ohem"].interval[0]
    usual = make(runs, KEYS).overall["sampler=ohem"].interval
    assert half > 1.5 * (usual[1] - usual[0])
    assert "at 0.1 % for all" in table(early).notes[1]


def test_a_curve_is_the_mean_ap_of_a_method_by_condition(tmp_path: Path) -> None:
    """Also of a condition that a method lacks."""
    folder = fabricated_map(tmp_path, {("ohem", ("16", "10")): 8.0})
    for run in folder.glob("pisa ('0', '10') *"):
        shutil.rmtree(run)
    found = make(read(folder), KEYS)
    drawn = curves(found)
    assert [axes.get_xlabel() for axes in drawn.axes] == list(KEYS)
    lines = {bar.get_label(): list(bar.lines[0].get_ydata()) for bar in drawn.axes[0].containers}
    assert set(lines) == {f"sampler={name}" for name in SAMPLERS}
    for method, heights in lines.items():
        means = [
            fmean(found.values(c, method)) if method in found.studies[c].methods else np.nan
            for c in found.axes[0]
        ]
        assert heights == pytest.approx(means, nan_ok=True)
    assert [bool(height > 0) for height in lines["sampler=pisa"]] == [False, True, True]
    labels = [text.get_text() for text in drawn.axes[1].get_xticklabels()]
    assert labels == ["1", "10", "100"]


def test_a_method_that_did_not_learn_is_cut_from_the_curves(tmp_path: Path) -> None:
    """The axis and the colours follow the others; the cut means stand at the lower end."""
    found = make(read(fabricated_map(tmp_path, {("pisa", CENTRE): -40.0})), KEYS)
    assert found.not_learnt == {"sampler=pisa"}
    last = f"undecided at {len(found.studies) - 1} of {len(found.studies)} conditions"
    assert any(said.endswith(f"{last}, did not learn at 1.") for said in sentences(found))
    axes = curves(found).axes[0]
    others = [
        fmean(found.values(c, f"sampler={m}")) for c in found.axes[0] for m in ("ohem", "random")
    ]
    cut = fmean(found.values(CENTRE, "sampler=pisa"))
    assert cut < axes.get_ylim()[0] < min(others) < min(others) + 5
    assert [text.get_text() for text in axes.texts] == [f"{cut:.0f} ↓"]
    colours = figure(found).axes[0].images[0].get_clim()[1]
    learnt = [v.difference.mean for (_, m), v in found.verdicts.items() if m != "sampler=pisa"]
    assert colours == max(map(abs, learnt))


def test_a_map_goes_on_from_its_csv_where_folders_are_gone(tmp_path: Path) -> None:
    """The runs of two machines, of one of which only the CSV is left, give the same map."""
    whole = fabricated_map(tmp_path / "whole", {})
    here, gone = tmp_path / "here", tmp_path / "gone"
    for run in whole.iterdir():
        shutil.copytree(run, (gone if run.name.endswith("1") else here) / run.name)
    write_csv(read(gone), tmp_path / "gone.csv")
    write_csv(runs_of(here, tmp_path / "gone.csv"), tmp_path / "both.csv")
    write_csv(read(whole), tmp_path / "whole.csv")
    assert (tmp_path / "both.csv").read_text() == (tmp_path / "whole.csv").read_text()
