"""The study of experiments/which_sampler: its runs, its choice of settings, its draws of images."""

import copy
import json
import shutil
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from fabricated import fabricate, with_detections
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_evaluation import NAMES
from test_report_matches import drawn, untied

pytest.importorskip("scipy")

from experiments.report.csv_files import read_csv, write_csv
from experiments.report.detections import seed_of
from experiments.report.images import DRAWS, read_draws, resampled, write_draws
from experiments.report.matches import match
from experiments.report.runs import Run
from experiments.which_sampler import collect
from experiments.which_sampler.choose import (
    ARMS,
    SETS,
    SETTINGS,
    chosen,
    surface,
    values_of,
    write_cases,
)
from frcnn.config.compose import CONF, checked
from frcnn.errors import UserError
from frcnn.evaluation.coco import coco_evaluator, coco_metrics
from frcnn.runfolder import environment
from frcnn.runfolder.sweeps import finished_elsewhere

STUDY = Path(__file__).parents[1] / "experiments/which_sampler"
BEST = "lr0.04_class1_box1"
# What the configuration of a fabricated run says of what the study checks.
SAID = {
    "optimizer.lr": "0.02",
    "loss_weight.rcnn.class": "None",
    "loss_weight.rcnn.box": "None",
    "trainer.max_steps": "None",
    "trainer.clip_norm": "10",
}


def jobs(sweep: str) -> tuple[str, list[tuple[str, ...]]]:
    """The folder of a sweep's runs, and the overrides of each."""
    own = f"hydra.searchpath=[file://{STUDY / 'conf'}]"
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose("train", [own, f"sweep={sweep}"], return_hydra_config=True)
        params = [f"{key}={said(key, v)}" for key, v in config.hydra.sweeper.params.items()]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(params), None)
        return OmegaConf.to_container(config, resolve=False)["run_name"], [tuple(j) for j in batch]


def said(key: str, value: Any) -> str:
    """What glob(*) stands for: here Hydra looks for options in the project's own folder only."""
    folder = STUDY / "conf" / key.lstrip("+")
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    return ",".join(names) if value == "glob(*)" else str(value)


def composed(monkeypatch: pytest.MonkeyPatch, sweep: str, *line: str) -> dict[str, Any]:
    """The checked configuration of one of a sweep's runs."""
    monkeypatch.setenv("DATA", "DIR")
    monkeypatch.setenv("LITE0", "FILE")
    own = f"hydra.searchpath=[file://{STUDY / 'conf'}]"
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        line = (own, f"sweep={sweep}", *line)
        config = hydra.compose("train", list(line), return_hydra_config=True)
        appended = {text.lstrip("+").partition("=")[0] for text in line if text.startswith("+")}
        choices = {k: v for k, v in config.hydra.runtime.choices.items() if v and "hydra" not in k}
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        parts = {key: value for key, value in choices.items() if key not in appended}
        return checked("train", config, parts, line)


def test_the_sweeps_are_the_protocol_s() -> None:
    folder, tuning = jobs("which_tuning")
    assert folder == "which_sampler/tuning" and len(set(tuning)) == len(tuning) == 120
    cells = Counter(tuple(sorted(t for t in job if t.startswith("+"))) for job in tuning)
    assert len(cells) == len(ARMS) * len(SETTINGS) * len(SETS)
    first = {text for job in tuning[:20] for text in job if "setting" in text}
    assert len(first) == 1  # all arms and sets: an estimate of the time
    _, length = jobs("which_length")
    assert len(length) == 8
    _, settings = jobs("which_settings")
    assert len(settings) == len(ARMS) * len(SETTINGS)
    assert {text for job in settings for text in job if "setting" in text} == {
        f"+setting={name}" for name in SETTINGS
    }
    _, scale = jobs("which_scale")
    assert len(scale) == 40
    _, quota = jobs("which_quota")
    assert len(quota) == 2**3 * 3
    assert len(jobs("which_weights")[1]) == 2 * 5


def test_all_runs_share_what_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for arm, name in [*zip(ARMS, SETS, strict=False), ("focal", "bccd")]:
        line = ["+net=slim", f"+arm={arm}", f"+set={name}", f"+setting={BEST}", "seed=0"]
        config = composed(monkeypatch, "which_tuning", *line)
        trainer, data = config["trainer"], config["data"]
        assert (trainer["clip_norm"], trainer["precision"]) == (None, "fp32")
        assert trainer["max_steps"] == 400
        assert (data["folds"], data["fold"], data["split_seed"]) == (5, 0, 0)
        assert data["root"] == f"DIR/{name}"
        assert data["split_block"] == (10 if name == "cards" else 1)
        assert data["max_size"] == (384 if name == "chess" else 256)
        assert config["optimizer"]["lr"] == 0.04
        assert config["model"]["backbone_width"] == 0.5
        kinds = {group: config[group]["rcnn"]["_target_"] for group in ("loss", "box_loss")}
        assert (kinds["loss"] == "frcnn.losses.Focal") == (arm == "focal")
        assert (kinds["box_loss"] == "frcnn.losses.CARL") == (arm == "pisa")


def test_the_second_network_starts_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["+net=lite0", "+arm=random", "+set=bccd", "+setting=lr0.02_class2_box3"]
    config = composed(monkeypatch, "which_tuning", *line)
    model = config["model"]
    assert (model["weights_backbone"], model["freeze_batch_norm"]) == ("FILE", True)
    slim = composed(monkeypatch, "which_tuning", "+net=slim", *line[1:])["model"]
    assert model["min_size"] == 192
    assert all(model[key] == slim[key] for key in ("fpn_channels", "representation_size"))
    assert config["trainer"]["clip_norm"] == 35
    assert config["loss_weight"]["rcnn"] == {"class": 2, "box": 3}


def test_the_last_cell_of_the_quota_s_sweep_is_ohem_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    last = jobs("which_quota")[1][7]
    found = composed(monkeypatch, "which_quota", *last)
    preset = composed(monkeypatch, "which_quota", "+net=slim", "sampler=ohem_quota", "seed=0")
    assert found == preset and found["data"]["folds"] is None


def runs() -> list[Run]:
    """AP 0.5, and a setting that is better on every set but one."""
    found = []
    for arm, setting, name in product(ARMS, SETTINGS, SETS):
        ap = 0.5
        if arm == "ohem" and setting == BEST:
            ap = 0.1 if name == "chess" else 0.6
        if arm == "focal" and setting == SETTINGS[2] and name == "bccd":
            ap = 0.9
        settings = {"arm": arm, "setting": setting, "set": name}
        found.append(
            Run(f"{arm}{setting}{name}", "COMPLETED", figures={"AP": ap}, settings=settings)
        )
    return found


def test_a_setting_is_chosen_by_the_other_sets() -> None:
    found = chosen(surface(runs()))
    assert len(found) == 20
    # By hand: on the three others 0.6, 0.6, 0.6 for chess; 0.6, 0.6, 0.1 < 0.5 for the rest.
    assert found["chess", "ohem"] == BEST and found["bccd", "ohem"] == SETTINGS[0]
    assert found["bccd", "focal"] == SETTINGS[0] and found["cards", "focal"] == SETTINGS[2]


def test_a_setting_that_diverged_anywhere_is_not_chosen() -> None:
    """Not for the set where it diverged either, which its own run does not choose."""
    ap = surface(runs())
    found = chosen(ap | {("ohem", BEST, "chess"): 0.0})
    assert all(found[name, "ohem"] == SETTINGS[0] for name in SETS)
    with pytest.raises(LookupError, match="^ohem diverged with every setting"):
        chosen(ap | {("ohem", setting, "bccd"): 0.0 for setting in SETTINGS})


def test_a_settings_name_has_its_values() -> None:
    for setting in SETTINGS:
        own = OmegaConf.load(STUDY / f"conf/setting/{setting}.yaml")
        for key, value in values_of(setting).items():
            assert float(OmegaConf.select(own, key, default=1)) == float(value), (setting, key)


def test_a_fold_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for sweep in ("which_test", "which_test_lite0"):
        assert "seed" not in said_keys(sweep)
        line = ["+net=slim", "+arm=ohem", "+set=bccd", "data.fold=3"]
        assert composed(monkeypatch, sweep, *line)["seed"] == 3


def said_keys(sweep: str) -> set[str]:
    """What a sweep's command lines set."""
    text = OmegaConf.load(STUDY / f"conf/sweep/{sweep}.yaml")
    return {str(key) for key in text.hydra.sweeper.params}


def test_a_choice_needs_every_tuning_run_once() -> None:
    with pytest.raises(LookupError, match="^1 tuning runs are missing: focal"):
        surface(runs()[:-1])
    with pytest.raises(LookupError, match="^two runs of random"):
        surface([*runs(), runs()[0]])


def test_a_case_is_its_arm_set_and_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cases(chosen(surface(runs())), tmp_path)
    # Tuning chose the preset for random sampling on every set: it is no case of its own.
    assert len(list(tmp_path.iterdir())) == len(SETS) * len(ARMS)
    (tmp_path / "old_preset.yaml").touch()
    others = {(name, "random"): BEST for name in SETS[:3]}
    write_cases(chosen(surface(runs())) | others, tmp_path)
    presets = {path.name for path in tmp_path.glob("*_preset.yaml")}
    assert presets == {f"{name}_preset.yaml" for name in SETS[:3]}
    text = (tmp_path / "chess_ohem.yaml").read_text()
    assert f"/setting/{BEST}\n" in text
    own = STUDY / "conf/case"
    if not own.exists():
        return
    for name, arm in product(SETS, ARMS):
        config = composed(
            monkeypatch, "which_test", "+net=slim", f"+case={name}_{arm}", "data.fold=3"
        )
        assert config["data"]["root"] == f"DIR/{name}" and config["data"]["fold"] == 3


def test_a_draw_is_the_ap_of_its_images_repeated() -> None:
    truth, found = untied(1)
    matches = match(coco_evaluator(truth, found, NAMES))
    images, seed = len(found), seed_of(["a.jpg", "b.jpg"])
    draws = resampled(matches, 5, seed)
    generator = np.random.default_rng(seed)
    for ap in draws:
        counts = generator.multinomial(images, np.full(images, 1 / images))
        expected = coco_metrics(*drawn(truth, copy.deepcopy(found), counts.tolist()), NAMES)["AP"]
        assert ap == pytest.approx(expected, abs=1e-9)
    assert np.array_equal(resampled(matches, 5, seed), draws)
    assert not np.array_equal(resampled(matches, 5, seed + 1), draws)


def test_draws_are_kept_to_a_ten_thousandth(tmp_path: Path) -> None:
    draws = {"b": np.array([0.12344, 1.0]), "a": np.array([np.nan, 0.0])}
    write_draws(tmp_path / "tuning.csv", draws)
    kept = read_draws(tmp_path / "tuning.csv")
    assert list(kept) == ["a", "b"]
    assert kept["b"].tolist() == pytest.approx([0.1234, 1.0])
    assert np.isnan(kept["a"][0]) and kept["a"][1] == 0
    assert read_draws(tmp_path / "other.csv") == {}


def test_collect_adds_each_run_once_and_keeps_other_rows(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "tuning.csv"
    line = ["sampler=ohem", "+arm=ohem", "data.fold=0", "seed=1", "sweep=x", "run_name=y"]
    with_detections(fabricate(runs / "one", *line[:1], "seed=1"), 2.0, 0)
    say(runs / "one", line)
    with (runs / "one/metrics.jsonl").open("a") as records:
        records.writelines(f'{{"train/grad_norm": {norm}}}\n' for norm in (11, 9, 12, 10))
    hydra_file = runs / "one/.hydra/run/config.yaml"  # the run's own
    hydra_file.parent.mkdir()
    shutil.copy(runs / "one/.hydra/config.yaml", hydra_file)
    (runs / "one/.hydra/config.yaml").write_text("optimizer: {lr: 0.04}")  # a refused command's
    shutil.copy(runs / "one/.hydra/hydra.yaml", hydra_file.with_name("hydra.yaml"))
    fabricate(runs / "failed", status="FAILED")
    diverged = fabricate(runs / "diverged", status="FAILED")
    say(diverged, ["+arm=pisa"], "UserError: not finite at step 3: loss=nan")
    assert [run.name for run in collect.collect(runs, out)] == ["diverged", "one"]
    kept, draws = out.read_text(), read_draws(out)
    found = {run.name: run for run in read_csv(out)}
    assert found["one"].settings == {
        "sampler": "ohem", "arm": "ohem", "data.fold": "0", **SAID, "seed": "1",
        "clipped": "0.5000",
    }  # fmt: skip
    assert found["diverged"].settings == {"arm": "pisa", **SAID, "seed": "0", "clipped": "nan"}
    assert not found["diverged"].figures
    assert list(draws) == ["one"] and len(draws["one"]) == DRAWS
    assert abs(draws["one"].mean() - found["one"].figures["AP"]) < 0.05
    assert collect.collect(runs, out) == [] and out.read_text() == kept
    write_draws(out, {})  # a kill before the draws were written
    assert [run.name for run in collect.collect(runs, out)] == ["one"]
    assert list(read_draws(out)) == ["one"] and out.read_text() == kept
    broken = with_detections(fabricate(runs / "broken", "seed=3"), 2.0, 0)
    (broken / "detections.npz").write_bytes(b"")
    with_detections(fabricate(runs / "three", "seed=4"), 2.0, 0)
    with pytest.raises(ValueError, match="^broken: detections that cannot be judged"):
        collect.collect(runs, out)  # what is broken holds up nothing else
    assert [run.name for run in read_csv(out)] == ["diverged", "one", "three"]
    shutil.rmtree(runs / "broken")
    shutil.rmtree(runs / "three")
    other = tmp_path / "elsewhere"
    with_detections(fabricate(other / "two", "seed=2"), 2.0, 1)
    assert [run.name for run in collect.collect(other, out)] == ["two"]
    assert [run.name for run in read_csv(out)] == ["diverged", "one", "three", "two"]
    assert list(read_draws(out)) == ["one", "three", "two"]


def say(run: Path, line: list[str], error: str | None = None) -> None:
    """Let a run's status hold another command line."""
    record = json.loads((run / "status.json").read_text())
    record |= {"overrides": line} | ({"error": error} if error else {})
    (run / "status.json").write_text(json.dumps(record))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV of a run of this commit, one of another commit, and one that failed."""
    now = {"commit": "0123456789", "dirty": False}
    monkeypatch.setattr(environment, "commit", lambda: now)
    made = {"commit": "01234567"}
    done = Run("arm-ohem", "COMPLETED", figures={"AP": 0.25}, made=made)
    old = Run("arm-pisa", "COMPLETED", figures={"AP": 0.5}, made={"commit": "76543210"})
    dirty = Run("arm-all", "COMPLETED", figures={"AP": 1}, made={"commit": "01234567 with changes"})
    failed = [Run("arm-focal", "FAILED", "no space left", made=made)]
    failed.append(Run("arm-diverged", "FAILED", "not finite at step 3: loss=nan", made=made))
    write_csv([done, old, dirty, *failed], tmp_path / "runs.csv")
    return tmp_path / "runs.csv"


def test_a_run_is_done_where_its_name_and_commit_stand(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("arm-ohem", "arm-pisa", "arm-all", "arm-focal", "arm-random")
    found = [finished_elsewhere(rows, Path(name)) for name in names]
    assert found == [0.25, None, None, None, None]
    assert finished_elsewhere(rows, Path("arm-diverged")) == 0
    monkeypatch.setattr(environment, "commit", lambda: {"commit": "0123456789", "dirty": True})
    with pytest.raises(UserError, match="a clone without changes"):
        finished_elsewhere(rows, Path("arm-ohem"))


def test_the_table_of_lengths_is_that_of_the_runs() -> None:
    ap = {
        (run.settings["trainer.max_steps"], run.settings["set"]): f"{100 * run.figures['AP']:.1f}"
        for run in read_csv(STUDY / "length.csv")
    }
    page = (STUDY / "README.md").read_text()
    for steps in ("400", "800"):
        assert f"| {steps} steps | {' | '.join(ap[steps, name] for name in SETS)} |" in page
