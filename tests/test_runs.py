"""Whole runs, tiny: what they leave behind, and that they repeat and resume to the last bit."""

import json
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    lines,
    same,
    small_network,
    the_same,
    tiny,
    weights,
    without_measured,
    without_times,
)

from frcnn.build import dataset, detector, fill_from_data
from frcnn.errors import ConfigError, UserError
from frcnn.evaluation.inference import (
    detect,
    load_detections,
    save_detections,
    validation_loader,
)
from frcnn.evaluation.load import load_trained
from frcnn.model import SamplingFasterRCNN
from frcnn.runfolder import checkpoint
from frcnn.training.loop import Engine
from frcnn.training.run import Run, run
from frcnn.training.validation import Validation

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
RETINANET = "retinanet_resnet18_fpn"
TERMS = {
    "fasterrcnn_resnet18_fpn": {
        "loss", "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg",
    },
    RETINANET: {"loss", "classification", "bbox_regression"},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with small_network():
        yield


def trained(folder: Path, *overrides: str) -> Path:
    run(*tiny(*overrides), folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 12 steps in two epochs."""
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module", params=TERMS)
def each(
    request: pytest.FixtureRequest, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """An undisturbed run of each network."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    return name, trained(folder, f"model={name}") if name == RETINANET else whole


def test_metrics_file(each: tuple[str, Path]) -> None:
    name, whole = each
    terms = TERMS[name]
    records = lines(whole)
    training = [r for r in records if "train/loss" in r]
    assert [r["step"] for r in training] == list(range(1, 13))
    for record in training:
        assert {f"train/{term}" for term in terms} | {"train/lr", "epoch"} < record.keys()
        whole_loss = sum(record[f"train/{term}"] for term in terms - {"loss"})
        assert record["train/loss"] == pytest.approx(whole_loss)
    assert training[0]["train/lr"] == 0.02 and training[6]["train/lr"] == pytest.approx(0.01)
    validation = [r for r in records if "val/AP" in r]
    assert [(r["step"], r["epoch"]) for r in validation] == [(6, 1), (12, 2)]
    for record in validation:
        assert {f"val/{k}" for k in (*METRICS, *terms)} < record.keys()
    for site in checkpoint.load(whole / "checkpoints/last.pt")["config"]["model"]["sites"]:
        looks = [r for r in records if f"sampling/{site}/positives_per_image" in r]
        assert [r["step"] for r in looks] == [1, 4, 7, 10]


def test_summary(each: tuple[str, Path]) -> None:
    name, whole = each
    summary = json.loads((whole / "summary.json").read_text())
    told = {"per_class", "choices", "seed", "steps", "seconds", "peak_memory_mb"}
    assert set(METRICS) | told < summary.keys()
    assert all(summary[k] is None or 0 <= summary[k] <= 1 for k in METRICS)
    assert summary["per_class"].keys() == {"circle", "square", "triangle"}
    assert summary["choices"]["model"] == name
    usual = {"sampler/dense": "all"} if name == RETINANET else {"sampler/rcnn": "random"}
    assert usual.items() < summary["choices"].items()
    assert (summary["seed"], summary["steps"]) == (0, 12) and summary["seconds"] > 0
    validation = [r for r in lines(whole) if "val/AP" in r]
    assert summary["AP"] == validation[-1]["val/AP"]
    assert summary["best"]["AP"] == max(r["val/AP"] for r in validation)


def test_checkpoints_hold_what_is_needed_and_fit_a_new_network(each: tuple[str, Path]) -> None:
    name, whole = each
    last, best = (checkpoint.load(whole / f"checkpoints/{name}.pt") for name in ("last", "best"))
    assert last["step"] == 12 and last["class_names"] == ["circle", "square", "triangle"]
    run_name = {"run_name": last["config"]["run_name"]}  # the time
    config = tiny(f"model={name}")[0]
    fill_from_data(config["loss"], dataset(config["data"], "train"), config["model"]["sites"])
    assert last["config"] == config | run_name
    assert last["choices"]["model"] == name
    assert "optimizer" in last and "optimizer" not in best
    assert best["step"] == last["best"]["step"]
    detector(last["config"], num_classes=4).load_state_dict(last["model"])


def test_same_seed_same_weights_and_another_seed_others(whole: Path, tmp_path: Path) -> None:
    again = trained(tmp_path / "again")
    assert same(weights(again), weights(whole))
    assert without_times(lines(again)) == without_times(lines(whole))
    assert not same(
        weights(trained(tmp_path / "other", "seed=1", "trainer.epochs=1")), weights(whole)
    )


def test_the_seed_reaches_order_augmentation_and_weights(tmp_path: Path) -> None:
    zero, one = (Run(*tiny(f"seed={seed}"), tmp_path) for seed in (0, 1))
    assert [run.train_set.seed for run in (zero, one)] == [0, 1]
    assert not same(zero.detector.state_dict(), one.detector.state_dict())


@pytest.mark.parametrize(
    "change", ["trainer.workers=2", "trainer.sampling_every=1", "wandb.tags=[a]"]
)
def test_what_must_not_change_a_result(whole: Path, tmp_path: Path, change: str) -> None:
    assert same(weights(trained(tmp_path, change)), weights(whole))


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C as step number ``step`` begins."""
    train_step = Engine.train_step

    def interrupted(self: Engine, group: Any) -> dict[str, float]:
        if self.step == step:
            raise KeyboardInterrupt
        return train_step(self, group)

    monkeypatch.setattr(Engine, "train_step", interrupted)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["sampler=ohem", "trainer.accumulate=2"],
        pytest.param(
            ["loss=ghm_c", "box_loss=ghm_r", "trainer.accumulate=2"], marks=pytest.mark.slow
        ),
        [f"model={RETINANET}", "sampler/dense=ohem", "loss/dense=ghm_c", "trainer.accumulate=2"],
    ],
    ids=str,
)
@pytest.mark.parametrize("late", [0, 2], ids=["at the end of an epoch", "in mid-epoch"])
def test_a_resumed_run_is_the_undisturbed_one(
    tmp_path: Path, overrides: list[str], late: int
) -> None:
    per_epoch = 3 if overrides else 6
    straight = trained(tmp_path / "straight", *overrides)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, per_epoch + late)
        trained(tmp_path / "stopped", *overrides)
    assert checkpoint.load(tmp_path / "stopped/checkpoints/last.pt")["step"] == per_epoch
    assert the_same(trained(tmp_path / "stopped", *overrides), straight)


@pytest.mark.parametrize("step", [6, 10], ids=["at the end of an epoch", "in mid-epoch"])
def test_a_log_line_is_the_same_mean_wherever_the_run_was_cut(tmp_path: Path, step: int) -> None:
    sparse = ["trainer.log_every=4"]
    straight = trained(tmp_path / "straight", *sparse)
    assert [r["step"] for r in lines(straight) if "train/loss" in r] == [4, 8, 12]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, step)
        trained(tmp_path / "stopped", *sparse, "trainer.checkpoint_minutes=0")
    assert checkpoint.load(tmp_path / "stopped/checkpoints/last.pt")["step"] == step
    assert the_same(trained(tmp_path / "stopped", *sparse), straight)


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[str, int]] = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda p, c: saved.append((p.stem, c["step"])) or save(p, c)
    )
    trained(tmp_path / "rare", "trainer.max_steps=2")
    assert saved == [("last", 0), ("last", 2), ("best", 2), ("last", 2)]
    saved.clear()
    trained(tmp_path / "often", "trainer.max_steps=2", "trainer.checkpoint_minutes=0")
    assert saved == [("last", step) for step in (0, 1, 2, 2)] + [("best", 2), ("last", 2)]


CONSTANT = ["schedule=multistep", "schedule.milestones=[]"]


def test_more_steps_go_on_in_mid_epoch(tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight", *CONSTANT, "trainer.max_steps=10")
    trained(tmp_path / "longer", *CONSTANT, "trainer.max_steps=8")
    longer = trained(tmp_path / "longer", *CONSTANT, "trainer.max_steps=10")
    assert same(weights(longer), weights(straight))


def test_resume_from_elsewhere_and_not_at_all(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = whole / "checkpoints/last.pt"
    moved = trained(tmp_path / "moved", f"resume={path}", "trainer.epochs=3")
    assert [r["step"] for r in lines(moved) if "train/loss" in r] == list(range(13, 19))
    assert (moved / "checkpoints/best.pt").exists()  # a run's folder is whole
    with caplog.at_level("INFO"):
        again = trained(moved, f"resume={path}", "trainer.epochs=4")
    assert "resumed after step 18" in caplog.text  # the folder's own last.pt
    assert [r["step"] for r in lines(again) if "train/loss" in r] == list(range(13, 25))
    anew = trained(moved, "resume=never", "trainer.epochs=1")
    assert [r["step"] for r in lines(anew) if "train/loss" in r] == list(range(1, 7))


def test_a_finished_run_started_again_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = trained(tmp_path, "trainer.epochs=1")
    before = weights(first), lines(first), json.loads((first / "summary.json").read_text())
    with caplog.at_level("INFO"):
        trained(tmp_path, "trainer.epochs=1")
    assert f"finished before: {tmp_path.name}, AP" in caplog.text
    assert same(weights(first), before[0]) and lines(first) == before[1]
    assert json.loads((first / "summary.json").read_text()) == before[2]


def test_a_run_that_goes_on_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = trained(tmp_path, "trainer.epochs=1")
    before = (first / "summary.json").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(Engine, "train_step", None)
        trained(tmp_path, "trainer.epochs=2")
    assert not (first / "summary.json").exists()
    with caplog.at_level("INFO"):
        trained(tmp_path, "trainer.epochs=1")  # as it was, from last.pt
    assert "finished before" not in caplog.text
    found, expected = json.loads((first / "summary.json").read_text()), json.loads(before)
    assert without_measured(found) == without_measured(expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["sampler=ohem"], "sampler.rcnn._target_: 'samplers.Random' -> 'samplers.OHEM', "),
        (["seed=1"], "seed: 0 -> 1)"),
        (["data.clutter=1"], "data.clutter: 0 -> 1)"),
        (["loss_weight.rcnn.class=2"], "loss_weight.rcnn.class: 1 -> 2)"),
        (["trainer.batch_size=3"], "trainer.batch_size x devices: 2 -> 3)"),
        (["trainer.accumulate=2"], "trainer.accumulate: 1 -> 2)"),
        (["assigner=atss"], " more)"),
    ],
    ids=str,
)
def test_a_run_made_of_other_parts_does_not_resume(
    whole: Path, tmp_path: Path, change: list[str], named: str
) -> None:
    path = whole / "checkpoints/last.pt"
    says = rf"trained with other settings \(.*{re.escape(named)}.*: give .*resume=never"
    with pytest.raises(ConfigError, match=says):
        trained(tmp_path, f"resume={path}", *change)


def test_a_run_does_not_go_on_in_another_precision(whole: Path, tmp_path: Path) -> None:
    path = whole / "checkpoints/last.pt"
    more = (f"resume={path}", "trainer.epochs=3", "trainer.precision=bf16")
    with pytest.raises(ConfigError, match=r"computed in fp32 and would go on in bf16: give"):
        trained(tmp_path, *more)


def as_version_1(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as the first version wrote it."""
    config = {k: v for k, v in saved["config"].items() if k not in ("site", "weigher")}
    model = {k: v for k, v in config["model"].items() if k not in ("_target_", "sites")}
    del model["append_objects"]
    assigner = config.pop("assigner")
    for site, name in (("rpn", "rpn"), ("rcnn", "box")):
        node = assigner[site]
        model |= {f"{name}_fg_iou_thresh": node["high"], f"{name}_bg_iou_thresh": node["low"]}
    config["model"] = model | {"ignore_ioa": assigner["rpn"]["ignore_ioa"]}
    config["loss_weight"] = dict.fromkeys(("classifier", "box_reg", "objectness", "rpn_box_reg"), 1)
    old = {k: v for k, v in saved.items() if k not in ("sites", "own_optimizers")}
    shares = saved["sites"]["rpn.class_loss.density.shares"]
    states = {"rpn.class_loss": {"shares": shares}}
    return old | {"version": 1, "config": config, "losses": states}


def test_a_run_of_version_1_goes_on_and_evaluates(tmp_path: Path) -> None:
    trained(tmp_path / "whole", "loss=ghm")
    path, saved = tmp_path / "old.pt", checkpoint.load(tmp_path / "whole/checkpoints/last.pt")
    torch.save(as_version_1(saved), path)
    read = checkpoint.load(path)
    assert read["config"]["assigner"] == saved["config"]["assigner"]
    assert read["config"]["model"] == saved["config"]["model"]
    assert read["sites"].keys() == saved["sites"].keys()
    trained(tmp_path / "a", f"resume={path}", "loss=ghm")
    with pytest.raises(ConfigError, match=r"settings \(loss_weight.rcnn.box: 1 -> 3\): "):
        trained(tmp_path / "b", f"resume={path}", "loss=ghm", "loss_weight.rcnn.box=3")
    model = load_trained(str(path), "cpu", "fp32").detector
    shares = model.sites["rpn"].class_loss.density.shares
    assert torch.equal(shares, saved["sites"]["rpn.class_loss.density.shares"])


def test_a_resumed_run_does_not_keep_the_checkpoint_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, epoch, loaded = checkpoint.load, Engine.epoch, list[weakref.ref[Any]]()

    def watched(path: Path) -> dict[str, Any]:
        content = load(path)
        loaded.append(weakref.ref(next(iter(content["model"].values()))))
        return content

    def trains(engine: Engine, *arguments: Any) -> None:
        assert [found() for found in loaded] == [None]
        epoch(engine, *arguments)

    trained(tmp_path, "trainer.max_steps=1")
    monkeypatch.setattr(checkpoint, "load", watched)
    monkeypatch.setattr(Engine, "epoch", trains)
    trained(tmp_path, "trainer.max_steps=2")
    assert loaded


def test_resume_from_weights_alone_or_from_nothing(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best\.pt: holds weights only; use last\.pt"):
        trained(tmp_path, f"resume={whole / 'checkpoints/best.pt'}")
    with pytest.raises(UserError, match=r"none\.pt: no such checkpoint$"):
        trained(tmp_path, f"resume={tmp_path / 'none.pt'}")


def images_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[Any]:
    """(images, boxes) of every training batch, as the detector got them."""
    seen: list[Any] = []
    forward = SamplingFasterRCNN.forward

    def watched(self: SamplingFasterRCNN, images: Any, targets: Any = None) -> Any:
        if self.training:
            seen.append(([i.clone() for i in images], [t["boxes"].clone() for t in targets]))
        return forward(self, images, targets)

    with monkeypatch.context() as patch:
        patch.setattr(SamplingFasterRCNN, "forward", watched)
        trained(folder, *overrides)
    return seen


def test_two_samplers_see_the_same_images_augmented_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["augmentation=flip_color", "data.train_images=8"]
    first = images_of(tmp_path / "a", monkeypatch, *common)
    second = images_of(tmp_path / "b", monkeypatch, *common, "sampler=ohem", "sampler/rpn=ohem")
    assert len(first) == len(second) == 8
    for one, other in zip(first, second, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(one[0] + one[1], other[0] + other[1], strict=True)
        )


# Per network: what a run may train with, and its last layer for the classes.
OPTIONS = {
    "fasterrcnn_resnet18_fpn": (
        ["loss=focal", "loss.rcnn.per=guided", "box_loss=carl"],
        ("roi_heads.box_predictor.cls_score", "loss_classifier", "loss_box_reg"),
    ),
    RETINANET: (
        ["loss=ghm_c", "loss.dense.per=guided", "sampler/dense=ohem", "box_loss=carl"],
        ("head.classification_head.cls_logits", "classification", "bbox_regression"),
    ),
}


def test_validation_draws_the_baseline_whatever_the_run_trains_with(
    each: tuple[str, Path],
) -> None:
    name, whole = each
    options, (last_layer, class_term, box_term) = OPTIONS[name]
    saved = checkpoint.load(whole / "checkpoints/last.pt")
    losses = []
    for option in ([], *([option] for option in options)):
        config, _ = tiny(f"model={name}", *option)
        model = detector(config, 4)
        model.load_state_dict(saved["model"])
        loader = validation_loader(dataset(config["data"], "val"), 2, 0)
        losses.append(detect(model, loader, torch.device("cpu"), torch.float32)[1])
    assert all(found == losses[0] for found in losses)
    # It depends on the classifier, also where the training loss is guided by the box loss.
    with torch.no_grad():
        model.get_submodule(last_layer).weight.mul_(2)
    changed = detect(model, loader, torch.device("cpu"), torch.float32)[1]
    assert changed[class_term] != losses[0][class_term]
    assert changed[box_term] == losses[0][box_term]
    logged = [r for r in lines(whole) if "val/loss" in r][-1]
    expected = {term: logged[f"val/{term}"] for term in TERMS[name]}
    assert losses[0] == pytest.approx(expected, rel=1e-5)


def test_validation_visits_every_image_once_in_order() -> None:
    loader = validation_loader(dataset(tiny("data.val_images=5")[0]["data"], "val"), 2, 0)
    assert [[t["image_id"] for t in targets] for _, targets in loader] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("sampler", ["random", "ohem"])
def test_a_run_that_diverges_says_so_and_keeps_the_batch(tmp_path: Path, sampler: str) -> None:
    says = r"not finite at step \d+: .*learning rate 1e\+30, images train-\d+ \(image id \d+\), "
    with pytest.raises(UserError, match=says):
        diverging = ["optimizer.lr=1e30", "trainer.clip_norm=null", *CONSTANT]
        trained(tmp_path, *diverging, f"sampler={sampler}")
    saved = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert len(saved["images"]) == len(saved["targets"]) == 2


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float | None]) -> None:
    """Validations find these APs one after the other."""
    found: Callable[..., dict[str, Any]] = Validation._metrics
    rest = iter(scores)
    monkeypatch.setattr(Validation, "_metrics", lambda self, d: found(self, d) | {"AP": next(rest)})


def validated(folder: Path) -> list[int]:
    return [r["epoch"] for r in lines(folder) if "val/AP" in r]


SHORT = ["data.train_images=2", "trainer.epochs=6", "data.val_images=1"]


def test_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9])
    run(*tiny(*SHORT, "trainer.patience=2"), tmp_path)
    assert validated(tmp_path) == [1, 2, 3, 4]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"] == {"AP": 0.3, "step": 2} and summary["AP"] == 0.3
    assert checkpoint.load(tmp_path / "checkpoints/best.pt")["step"] == 2


def test_the_weights_of_every_validation_are_kept_if_asked(tmp_path: Path) -> None:
    config = tiny(
        *SHORT, "trainer.epochs=3", "trainer.eval_every=2", "trainer.keep_checkpoints=true"
    )
    run(*config, tmp_path)
    kept = {path.stem: checkpoint.load(path) for path in (tmp_path / "checkpoints").glob("step_*")}
    assert {name: content["step"] for name, content in kept.items()} == {"step_2": 2, "step_3": 3}
    last = checkpoint.load(tmp_path / "checkpoints/last.pt")["model"]
    for name in last:
        assert torch.equal(kept["step_3"]["model"][name], last[name])
    assert any(not torch.equal(kept["step_2"]["model"][name], last[name]) for name in last)


def test_patience_outlives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(*SHORT, "trainer.patience=3")
    scripted(monkeypatch, [0.5, 0.2, 0.2, 0.2, 0.2, 0.2])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        run(*config, tmp_path)
    run(*config, tmp_path)
    assert validated(tmp_path) == [1, 2, 3, 4]
    scripted(monkeypatch, [0.2])  # out of patience already: only the summary is made again
    run(*config, tmp_path)
    assert validated(tmp_path) == [1, 2, 3, 4]


def test_no_metric_at_all_counts_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [None, 0.0, None])
    assert run(*tiny(*SHORT, "trainer.epochs=3"), tmp_path) == 0.0
    assert checkpoint.load(tmp_path / "checkpoints/best.pt")["step"] == 2


def test_what_ends_a_validation_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: Any) -> None:
        raise UserError("an image cannot be read")

    monkeypatch.setattr("frcnn.training.validation.detect", ends)
    with pytest.raises(UserError, match="an image cannot be read"):
        trained(tmp_path, "trainer.epochs=1")
    assert checkpoint.load(tmp_path / "checkpoints/last.pt")["step"] == 6
    monkeypatch.undo()
    trained(tmp_path, "trainer.epochs=1")
    assert validated(tmp_path) == [1]


def test_validation_every_so_many_epochs_and_at_the_end(tmp_path: Path) -> None:
    trained(tmp_path, *SHORT, "trainer.eval_every=4")
    assert validated(tmp_path) == [4, 6]


def test_max_steps_ends_a_run_in_mid_epoch_with_a_validation(tmp_path: Path) -> None:
    trained(tmp_path, "trainer.max_steps=8")
    assert [(r["step"], r["epoch"]) for r in lines(tmp_path) if "val/AP" in r] == [(6, 1), (8, 2)]
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 8
    rates = [r["train/lr"] for r in lines(tmp_path) if "train/lr" in r]
    assert rates[4] == pytest.approx(0.01)  # half way through 8 steps, not 12


def test_a_frozen_weight_stays_and_the_optimizer_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, choices = tiny("trainer.epochs=1")
    job = Run(config, choices, tmp_path)
    frozen = next(job.detector.backbone.parameters()).requires_grad_(False)
    before = frozen.clone()
    job.go()
    assert torch.equal(frozen, before)
    groups = checkpoint.load(tmp_path / "checkpoints/last.pt")["optimizer"]["param_groups"]
    assert sum(len(g["params"]) for g in groups) == len(list(job.detector.parameters())) - 1


def test_problems_of_the_data_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_problem(node: dict[str, Any], split: str) -> Any:
        found = dataset(node, split)
        found.ignore[:3] = True
        found.problems.add("boxes without area", "a.xml object 3", dropped=True)
        return found

    monkeypatch.setattr("frcnn.training.run.dataset", with_problem)
    Run(*tiny(), tmp_path)
    assert "train data: dropped 1 boxes without area (first: a.xml object 3)" in caplog.text
    assert "train data: 3 crowd/difficult objects are ignored" in caplog.text


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(whole: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path, "trainer.compile=true", "trainer.max_steps=2")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert weights(folder).keys() == weights(whole).keys()
    for ours, eager in zip(lines(folder), lines(whole), strict=False):
        if "train/loss" in ours:
            assert ours["train/loss"] == pytest.approx(eager["train/loss"], rel=1e-3)


def test_detections_come_back_as_they_were(tmp_path: Path) -> None:
    detections = [
        {
            "image_id": image,
            "boxes": torch.rand(count, 4) * 60,
            "scores": torch.rand(count),
            "labels": torch.arange(1, count + 1),
        }
        for image, count in ((3, 2), (8, 0), (9, 1))
    ]
    save_detections(tmp_path / "detections.npz", detections)
    found = load_detections(tmp_path / "detections.npz")
    assert [row["image_id"] for row in found] == [3, 8, 9]
    for row, expected in zip(found, detections, strict=True):
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(row[key], expected[key]) and row[key].dtype == expected[key].dtype


def test_auto_weights_are_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saved() -> dict[str, Any]:
        return checkpoint.load(tmp_path / "checkpoints/last.pt")["config"]["model"]

    trained(tmp_path, "model.weights=auto", "trainer.max_steps=1")
    assert saved()["weights"] is None  # torchvision has none for a ResNet-18
    monkeypatch.setattr("frcnn.model.backbones.auto_weights", lambda _: "COCO_V1")
    trained(tmp_path, "model.weights=auto", "trainer.max_steps=2")
    assert saved()["weights"] is None
    with pytest.raises(ConfigError, match="no detector weights"):
        trained(tmp_path, "model.weights=auto", "resume=never")
