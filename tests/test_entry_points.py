"""Commands as a user types them: files, words and exit codes."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from tiny import (
    BOTH,
    NETWORKS,
    SMALL,
    SMALL_DENSE,
    call,
    command_line,
    lines,
    options,
    small_backbone,
    small_network,
    voc,
)
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from experiments.figures.__main__ import main as draw_figures
from experiments.report.runs import read
from experiments.report.study import study
from frcnn import check_data, evaluate, predict, train
from frcnn.build import dataset
from frcnn.config.compose import CONF, plain_values
from frcnn.data import shapes
from frcnn.evaluation.coco import OVERALL, coco_metrics
from frcnn.evaluation.inference import load_detections
from frcnn.evaluation.load import load_trained
from frcnn.predict import find_images
from frcnn.runfolder import checkpoint
from frcnn.training.loop import Engine

ROOT = Path(CONF).parent
# A third of the training set, so that a run takes a fraction of a second.
ONE_EPOCH = [*SMALL, "trainer.epochs=1", "data.train_images=4", "trainer.log_every=2"]


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands write below the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# So short a run of a RetinaNet is not sure of anything.
UNSURE = ["model.score_thresh=0.0", "loss.dense.prior=0.3"]


@pytest.fixture(scope="module", params=BOTH)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    more = ["trainer.epochs=3", "trainer.num_pictures=0", "optimizer.lr=0.01"]
    more += UNSURE if request.param == "retinanet" else []
    assert call(train.main, *NETWORKS[request.param], *more, f"hydra.run.dir={folder}") == 0
    return folder


def voc_of_sizes(folder: Path, sizes: list[tuple[int, int]]) -> None:
    """A VOC data set of an image of each size, with a white square in it."""
    voc(folder, ["square"])
    text = (folder / "Annotations/a.xml").read_text()
    for number, (width, height) in enumerate(sizes):
        picture = Image.new("RGB", (width, height), (20 * number, 60, 0))
        picture.paste("white", (5, 5, 30, 30))
        picture.save(folder / f"JPEGImages/{number}.jpg")
        own = text.replace("a.jpg", f"{number}.jpg").replace("<width>64", f"<width>{width}")
        own = own.replace("<height>48", f"<height>{height}")
        (folder / f"Annotations/{number}.xml").write_text(own)
    names = "".join(f"{number}\n" for number in range(len(sizes)))
    for split in ("train", "val"):
        (folder / f"ImageSets/Main/{split}.txt").write_text(names)


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def test_train_leaves_a_whole_folder(trained: Path) -> None:
    files = {str(file.relative_to(trained)) for file in trained.rglob("*") if file.is_file()}
    assert files == {
        ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml",
        ".hydra/run/config.yaml", ".hydra/run/hydra.yaml", ".hydra/run/overrides.yaml", "train.log",
        "metrics.jsonl", "summary.json", "status.json", "checkpoints/last.pt",
        "checkpoints/best.pt", "environment.json", "detections.npz", ".lock",
    }  # fmt: skip
    assert status(trained)["status"] == "COMPLETED" and status(trained)["error"] is None
    assert "optimizer.lr=0.01" in status(trained)["overrides"]
    log = (trained / "train.log").read_text()
    assert "sampler/rcnn=random" in log or "sampler/dense=all" in log
    assert "12 training and 4 validation images" in log
    assert "epoch 3 step 18/18" in log and "after 18 steps" in log
    assert re.search(r"step 18/18  loss \d.* (classifier|classification) \d", log)


@pytest.mark.parametrize("name", ["2024_01_01", "1e3", "20", "a", "2024-01-01"])
def test_a_run_s_name_is_kept_as_it_was_typed(folder: Path, name: str) -> None:
    assert call(train.main, f"run_name={name}", "data=voc", "data.root=2024_01") == 1
    assert os.listdir(folder / "runs") == [name]
    assert "2024_01/ImageSets" in status(folder / f"runs/{name}")["error"]


def test_a_run_without_hydra_s_files_has_a_status_and_a_lock(folder: Path) -> None:
    line = ["hydra.output_subdir=null", "data=voc", "data.root=none", "run_name=a"]
    assert call(train.main, *line) == 1
    run = folder / "runs/a"
    assert status(run)["status"] == "FAILED" and (run / ".lock").exists()
    (folder / "runs/b").mkdir()
    (folder / "runs/b/metrics.jsonl").touch()
    found = {run.name: (run.status, run.error) for run in read(folder / "runs")}
    assert [found[name][0] for name in "ab"] == ["UNREADABLE"] * 2
    assert ".hydra/config.yaml" in found["a"][1] and "status.json" in found["b"][1]


def test_options_may_lie_in_folders_of_the_search_path(folder: Path) -> None:
    (folder / "own/data").mkdir(parents=True)
    (folder / "own/data/mine.yaml").write_text("defaults: [voc]\nroot: mine\n")
    search = f"hydra.searchpath=[file://{folder}/own]"
    assert call(train.main, "data=mine", search, "run_name=a") == 1
    assert "mine/ImageSets" in status(folder / "runs/a")["error"]


@pytest.mark.parametrize(
    ("line", "folders"),
    [
        ("data.root=A,B", ["data-voc_data.root-A", "data-voc_data.root-B"]),
        ("data.root=A seed=0,1", ["data-voc_seed-0", "data-voc_seed-1"]),
        ("data.root=A wandb.mode=disabled,offline",
         ["data-voc_wandb.mode-disabled", "data-voc_wandb.mode-offline"]),
    ],
)  # fmt: skip
def test_jobs_that_differ_have_folders_of_their_own(
    folder: Path, line: str, folders: list[str]
) -> None:
    assert call(train.main, "-m", "data=voc", *line.split(), "hydra.sweep.dir=s") == 1
    assert sorted(file.parent.name for file in folder.glob("s/*/status.json")) == folders


def test_wandb_s_own_variables_hold_where_nobody_chose(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"MODE": "disabled", "PROJECT": "p", "DIR": "d", "NAME": "2024", "TAGS": "a, b"}
    usual = plain_values(hydra_config())["wandb"]
    assert [usual[key.lower()] for key in own] == ["offline", "frcnn-samplers", "runs", None, []]
    for key, value in own.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    found = plain_values(hydra_config())["wandb"]
    assert [found[key.lower()] for key in own] == ["disabled", "p", "d", "2024", ["a", "b"]]
    chosen = plain_values(hydra_config("wandb.mode=online", "wandb.tags=[c]"))["wandb"]
    assert (chosen["mode"], chosen["tags"], chosen["dir"]) == ("online", ["c"], "d")
    monkeypatch.setenv("WANDB_MODE", "")
    assert plain_values(hydra_config())["wandb"]["mode"] == "offline"


def hydra_config(*overrides: str) -> Any:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        return hydra.compose("train", list(overrides))


def test_an_interrupted_run_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "train_step", interrupted)
    assert call(train.main, *ONE_EPOCH, f"hydra.run.dir={folder}") == 130
    assert status(folder)["status"] == "INTERRUPTED"
    assert not (folder / "traceback.txt").exists()


def test_a_run_that_failed_leaves_its_traceback_until_it_succeeds(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*ONE_EPOCH, f"hydra.run.dir={folder}"]
    assert call(train.main, *line, "data.class_probabilities=[1]") == 1
    error = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    assert len(error) == 1 and "needs 3 shares" in error[0]
    assert status(folder)["status"] == "FAILED" and "needs 3 shares" in status(folder)["error"]
    assert "Traceback" in (folder / "traceback.txt").read_text()
    assert call(train.main, *line) == 0
    assert status(folder)["status"] == "COMPLETED"
    assert not (folder / "traceback.txt").exists()


def test_a_bug_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: Any) -> None:
        raise json.JSONDecodeError("unexpected", "x", 0)

    monkeypatch.setattr(Engine, "train_step", buggy)
    with pytest.raises(json.JSONDecodeError):
        call(train.main, *ONE_EPOCH, f"hydra.run.dir={folder}")
    assert status(folder)["status"] == "FAILED"


def test_what_needs_torch_to_be_found_is_one_line_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*ONE_EPOCH, f"hydra.run.dir={folder}"]
    for bad, says in {
        "trainer.precision=fp16": "fp16 needs a GPU",
        "trainer.device=gpu": "device: 'gpu' cannot be used here",
        "sampler.rcnn._target_=samplers.Rondom": "samplers.Rondom",
        "model.name=fasterrcnn_vgg": "fasterrcnn_vgg",
    }.items():
        assert call(train.main, *line, bad) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]


# The third value is refused when its job begins; the others run.
SWEEP = ["-m", *ONE_EPOCH, "sampler=random,ohem", "hydra.sweep.dir=sweep", "wandb.dir=wb"]


def test_a_sweep_in_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or init(**options))
    assert call(train.main, *SWEEP, "seed=0,1", "wandb.mode=offline") == 0
    jobs = sorted(job for job in (folder / "sweep").iterdir() if job.is_dir())
    for job, (sampler, seed) in zip(
        jobs, [("ohem", 0), ("ohem", 1), ("random", 0), ("random", 1)], strict=True
    ):
        assert job.name.startswith(f"sampler-{sampler}_seed-{seed}_data.height-48")
        assert status(job)["status"] == "COMPLETED"
        summary = json.loads((job / "summary.json").read_text())
        assert (summary["choices"]["sampler"], summary["seed"]) == (sampler, seed)
        assert lines(job)[-1]["epoch"] == 1 and (job / "train.log").read_text()
    ids = {checkpoint.load(job / "checkpoints/last.pt")["tracker"]["wandb_id"] for job in jobs}
    runs = list((folder / "wb/wandb").glob("offline-run-*"))
    assert len(ids) == 4 and {run.name.rpartition("-")[2] for run in runs} == ids
    found = study(read(folder / "sweep"))
    assert found.baseline == "sampler=random" and found.problems == []
    assert {label: sorted(runs) for label, runs in found.methods.items()} == {
        "sampler=random": [0, 1],
        "sampler=ohem": [0, 1],
    }
    assert [options["group"] for options in started] == ["sweep"] * 4
    made_of = [
        f"shapes random {s} cross_entropy seed {n}" for s in ("random", "ohem") for n in "01"
    ]
    in_turn = [*jobs[2:], *jobs[:2]]
    names = [f"{made} {job.name}" for made, job in zip(made_of, in_turn, strict=True)]
    assert [options["name"] for options in started] == names
    assert wandb.run is None


def test_a_job_that_fails_leaves_its_word_and_the_others_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(train.main, *SWEEP, "trainer.max_steps=-1,1") == 2
    out, error = capsys.readouterr()
    assert out.endswith("runs in sweep: 0 finished before, 0 resumed, 2 new, 2 failed\n")
    assert error.splitlines()[-1].startswith("error: trainer.max_steps: expected an integer")
    assert error.count("job failed: trainer.max_steps: expected") == 2
    jobs = [job for job in (folder / "sweep").iterdir() if job.is_dir()]
    finished = [job for job in jobs if "trainer.max_steps=1" in status(job)["overrides"]]
    assert [status(job)["status"] for job in finished] == ["COMPLETED"] * 2
    failed = [job for job in jobs if job not in finished]
    assert [status(job)["status"] for job in failed] == ["FAILED"] * 2
    for job in failed:
        assert "trainer.max_steps: expected" in status(job)["error"]
        assert "ConfigError" in (job / "traceback.txt").read_text()
        assert "job failed" in (job / "train.log").read_text()
    assert all((job / "summary.json").exists() for job in finished)


@pytest.fixture
def stored(trained: Path) -> dict[str, Any]:
    return json.loads((trained / "summary.json").read_text())


def test_evaluate_finds_what_training_found(
    trained: Path, folder: Path, stored: dict[str, Any]
) -> None:
    line = [f"checkpoint={trained}/checkpoints/last.pt", "workers=0", "device=cpu"]
    line += ["evaluation.backend=pycocotools", "output=out"]
    assert call(evaluate.main, *line) == 0
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert stored["AP"] > 0
    for key in ("AP", "AP50", "AR100"):
        assert metrics[key] == stored[key]
    loss = [r["val/loss"] for r in lines(trained) if "val/loss" in r][-1]
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    results = json.loads((folder / "out/results.json").read_text())
    assert results and results[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert {row["image_id"] for row in results} <= set(range(4))
    assert {row["category_id"] for row in results} <= {1, 2, 3}
    assert set(os.listdir(folder)) == {"out"}  # and nothing else where the command was called


@pytest.mark.parametrize("channels_last", ["true", "false"])
def test_evaluate_finds_the_same_in_bf16_and_in_the_run_s_batches(
    folder: Path, channels_last: str
) -> None:
    """Images of other sizes are padded by their batch; bf16 may be emulated."""
    voc_of_sizes(folder / "data", [(64, 48), (48, 64), (40, 40), (64, 30), (33, 64)])
    sizes = [text for text in SMALL if text.startswith("data.m")]
    others = [text for text in SMALL if not text.startswith("data.")]
    line = ["data=voc", "data.root=data", *sizes, *others, "trainer.precision=bf16"]
    line += ["trainer.batch_size=3", f"trainer.channels_last={channels_last}"]
    line += ["evaluation.max_detections=1"]
    assert call(train.main, *line, "trainer.epochs=8", "optimizer.lr=0.02", "run_name=a") == 0
    stored = json.loads((folder / "runs/a/summary.json").read_text())
    path = "checkpoint=runs/a/checkpoints/last.pt"
    options = ["workers=0", "device=cpu", "evaluation.backend=pycocotools", "output=out"]
    assert call(evaluate.main, path, *options) == 0
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert stored["AP"] > 0 and {key: metrics[key] for key in OVERALL} == {
        key: stored[key] for key in OVERALL
    }
    assert load_trained("runs/a/checkpoints/last.pt", "cpu", "run").max_detections == 1


def test_the_detections_of_a_run_give_its_figures(trained: Path, stored: dict[str, Any]) -> None:
    data = dataset(checkpoint.load(trained / "checkpoints/last.pt")["config"]["data"], "val")
    detections = load_detections(trained / "detections.npz")
    found = coco_metrics(data.ground_truth(), detections, data.class_names, "pycocotools")
    assert found["AP"] > 0 and found == {key: stored[key] for key in found}


def test_evaluate_on_the_training_split_and_beside_the_checkpoint(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = folder / "run/checkpoints/last.pt"
    checkpoint.save(copy, checkpoint.load(trained / "checkpoints/last.pt"))
    monkeypatch.chdir(copy.parent)
    assert call(evaluate.main, "checkpoint=last.pt", "split=train", "workers=0", "device=cpu") == 0
    results = json.loads((folder / "run/evaluation/last_train/results.json").read_text())
    assert max(row["image_id"] for row in results) > 3


def test_other_classes_are_refused_and_evaluate_takes_other_data(
    trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [f"checkpoint={trained}/checkpoints/best.pt", "data=voc", "workers=0", "output=out"]
    voc(folder / "other", ["dog", "cat"])
    for main in (evaluate.main, draw_figures):
        assert call(main, *line, "data.root=other") == 1
        error = capsys.readouterr().err
        assert error.splitlines()[-1] == (
            "error: the data has the classes cat, dog, the checkpoint circle, square, triangle"
        )
    voc(folder / "same", ["circle", "square", "triangle"])
    assert call(evaluate.main, *line, "data.root=same") == 0
    assert (folder / "out/metrics.json").exists()


def test_evaluate_finds_data_that_moved(
    trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint.load(trained / "checkpoints/best.pt")
    voc(folder / "now", ["circle", "square", "triangle"])
    saved["config"]["data"] = {"_target_": "frcnn.data.voc", "_partial_": True, "root": "before"}
    checkpoint.save(folder / "moved.pt", saved)
    line = ["checkpoint=moved.pt", "workers=0", "output=out"]
    for wrong, says in (
        ([], "before"),
        (["data.root=now"], "did you mean data_root?"),
        (["data=voc", "data.root=now", "data_root=now"], "with data=, say data.root"),
    ):
        assert call(evaluate.main, *line, *wrong) in (1, 2)
        assert says in capsys.readouterr().err
    assert call(evaluate.main, *line, "data_root=now") == 0
    line[0] = f"checkpoint={trained}/checkpoints/best.pt"
    assert call(evaluate.main, *line, "data_root=now") != 0
    assert "has no data.root" in capsys.readouterr().err


def test_evaluate_runs_nothing_that_a_checkpoint_names(
    trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint.load(trained / "checkpoints/last.pt")
    trap = {"_target_": "frcnn.runfolder.checkpoint.os.mkdir", "path": str(folder / "trap")}
    for place in ({"x": trap}, trap, [trap]):
        next(iter(saved["config"]["loss"].values()))["per"] = place
        checkpoint.save(folder / "evil.pt", saved)
        assert call(evaluate.main, "checkpoint=evil.pt", "workers=0") == 1
        assert (
            "frcnn.runfolder.checkpoint.os.mkdir, which is not this project's code"
            in capsys.readouterr().err
        )
    assert not (folder / "trap").exists()


def test_a_checkpoint_that_is_none_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.pt").write_text("x")
    for name, says in {"none.pt": "no such checkpoint", "text.pt": "not a readable"}.items():
        for main, more in ((evaluate.main, []), (predict.main, ["input=a.png"])):
            Image.new("RGB", (8, 8)).save(folder / "a.png")
            assert call(main, f"checkpoint={name}", *more) == 1
            error = capsys.readouterr().err.splitlines()
            assert len(error) == 1 and error[0].startswith(f"error: {name}: {says}")


@pytest.fixture
def pictures(folder: Path) -> Path:
    """Two images with shapes, one that is none, and a text."""
    data = shapes("val", val_images=2, width=64, height=48)
    (folder / "in").mkdir()
    for index, name in enumerate(["a.png", "b.jpg"]):
        Image.fromarray(data[index][0].permute(1, 2, 0).numpy()).save(folder / "in" / name)
    (folder / "in/broken.jpg").write_bytes(b"no image")
    (folder / "in/notes.txt").write_text("x")
    return folder / "in"


def predicted(trained: Path, text: str, *more: str) -> int:
    path = f"checkpoint={trained}/checkpoints/best.pt"
    return call(predict.main, path, f"input={text}", "output=out", "device=cpu", *more)


def test_predict_a_folder(
    trained: Path, pictures: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predicted(trained, "in", "min_score=0.1") == 0
    assert set(os.listdir("out")) == {
        "a.png_boxes.png", "b.jpg_boxes.png", "predictions.json", "results.json", "images.json",
        predict.SHEET,
    }  # fmt: skip
    rows = json.loads(Path("out/predictions.json").read_text())
    assert [row["file"] for row in rows] == ["in/a.png", "in/b.jpg"]
    boxes = [box for row in rows for box in row["boxes"]]
    assert boxes
    for box in boxes:
        x1, y1, x2, y2 = box["xyxy"]
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 48 and 0.1 <= box["score"] <= 1
        assert box["class"] in ("circle", "square", "triangle")
    shown = Image.open("out/a.png_boxes.png").convert("RGB")
    assert shown.size == (640, 480)  # small images are enlarged
    assert shown.tobytes() != Image.open("in/a.png").convert("RGB").resize((640, 480)).tobytes()
    error = capsys.readouterr().err
    assert "in/broken.jpg: cannot be read as an image" in error and "2 of 3 images" in error
    assert set(os.listdir(folder)) == {"in", "out"}


def test_presets_that_clash_are_told_in_the_log(folder: Path) -> None:
    own = folder / "own/preset/weigher/mine.yaml"
    own.parent.mkdir(parents=True)
    values = "{loss: {per: 1}, box_loss: {per: 1}}"
    own.write_text(f"rpn: none\nrcnn: none\ndense: none\nset:\n  dense: {values}\n")
    for network, number in (("retinanet_resnet18_fpn", 1), ("fasterrcnn_resnet18_fpn", 0)):
        presets = [f"model={network}", "sampler=guided_all", "weigher=mine"]
        line = ["--config-dir", str(folder / "own"), *presets, "data=voc", "data.root=none"]
        assert call(train.main, *line, f"hydra.run.dir={folder}/{network}") == 1  # no such data
        log = folder / network / "train.log"
        text = log.read_text() if log.exists() else ""
        for key, before in (("loss", "guided"), ("box_loss", "coordinate")):
            said = f"sets {key}.dense.per to {before} and weigher=mine sets it to 1"
            assert text.count(f"sampler=guided_all {said}") == number


def test_predict_leaves_out_boxes_without_width_or_height(folder: Path) -> None:
    boxes = torch.tensor([[1.0, 1, 5, 5], [2, 2, 2, 6], [3, 4, 9, 4]])
    found = {"boxes": boxes, "labels": torch.ones(3, dtype=torch.int64), "scores": torch.ones(3)}
    trained: Any = SimpleNamespace(
        detector=lambda images: [found], device=torch.device("cpu"), dtype=torch.float32
    )
    image = torch.zeros(3, 10, 10, dtype=torch.uint8)
    assert predict._detect(trained, image, [0.5])["boxes"].tolist() == [[1, 1, 5, 5]]


def test_predict_a_score_above_all_leaves_no_boxes(trained: Path, pictures: Path) -> None:
    assert predicted(trained, "in/a.png", "min_score=1") == 0
    (row,) = json.loads(Path("out/predictions.json").read_text())
    assert row["boxes"] == [] and Path("out", row["picture"]).exists()


def test_predict_what_cannot_be_read(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predicted(trained, "in/broken.jpg") == 1
    assert "error: in/broken.jpg: no image could be read" in capsys.readouterr().err
    assert predicted(trained, "in/nothing*") == 1
    assert "error: input=in/nothing*: no image there" in capsys.readouterr().err


def test_a_run_starts_from_torchvision_s_retinanet_of_other_classes(
    pictures: Path, folder: Path
) -> None:
    backbone = small_backbone(nn.BatchNorm2d, (2, 3, 4), LastLevelP6P7(256, 256))
    state = RetinaNet(backbone, 91).state_dict()
    torch.save(state, "coco.pth")
    line = [*SMALL_DENSE, *UNSURE, "model.weights=coco.pth", "trainer.max_steps=1"]
    assert call(train.main, *line, "optimizer.lr=1e-12", f"hydra.run.dir={folder}/run") == 0
    found = checkpoint.load(folder / "run/checkpoints/best.pt")["model"]
    assert found.keys() == state.keys()
    logits = "head.classification_head.cls_logits"
    for name, value in found.items():
        if not name.startswith(logits) and "running" not in name and "tracked" not in name:
            torch.testing.assert_close(value, state[name])
    assert len(found[f"{logits}.bias"]) == 9 * 4 and len(state[f"{logits}.bias"]) == 9 * 91
    assert predicted(folder / "run", "in/a.png", "min_score=0") == 0
    (row,) = json.loads(Path("out/predictions.json").read_text())
    assert row["boxes"] and Path("out", row["picture"]).exists()


def test_images_of_a_file_a_folder_a_pattern(pictures: Path) -> None:
    Image.new("RGB", (8, 8)).save("in/c[1].png")
    assert [p.name for p in find_images("in")] == ["a.png", "b.jpg", "broken.jpg", "c[1].png"]
    assert find_images("in/c[1].png") == [Path("in/c[1].png")]
    assert find_images("in/*.png") == [Path("in/a.png"), Path("in/c[1].png")]
    assert find_images("*/a.*") == [Path("in/a.png")]


def test_a_photo_is_turned_as_its_camera_says(pictures: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save("in/turned.jpg", exif=exif)
    assert predict._read(Path("in/turned.jpg")).shape == (3, 40, 20)


def said(caplog: pytest.LogCaptureFixture, *arguments: str, code: int = 0) -> str:
    """What check_data says, also without its own handlers."""
    records: list[str] = []
    log = logging.getLogger("frcnn.check_data")
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        assert call(check_data.main, *arguments) == code
    finally:
        log.removeHandler(handler)
    return "\n".join(records)


def test_check_data_counts(caplog: pytest.LogCaptureFixture, folder: Path) -> None:
    text = said(caplog, "data.train_images=5", "data.val_images=3")
    for split, number in (("train", 5), ("val", 3)):
        data = shapes(split, train_images=5, val_images=3)
        counts = data.class_frequencies().tolist()
        named = ", ".join(f"{n} {c}" for n, c in zip(data.class_names, counts, strict=True))
        assert f"{split}: {number} images; objects: {named}\nno problems found" in text
    assert os.listdir(folder) == []


def test_check_data_names_what_is_wrong(caplog: pytest.LogCaptureFixture, folder: Path) -> None:
    voc(folder / "data", ["dog"])
    Image.new("RGB", (32, 48)).save(folder / "data/JPEGImages/a.jpg")
    text = said(caplog, "data=voc", "data.root=data", code=1)
    assert "images of another size than annotated" in text and "32x48" in text


def test_check_data_fails_where_a_run_would_end(
    caplog: pytest.LogCaptureFixture, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc(folder / "data", ["dog"])
    Image.new("RGB", (64, 48)).save(folder / "data/JPEGImages/b.jpg")
    text = said(caplog, "data=voc", "data.root=data")
    assert "image size that is worth a trial: data.min_size=64 data.max_size=96" in text
    assert "At the present image size: data.anchor_sizes=[54,108,216,432,864]" in text
    assert "kept          1  images that the training split has too" in text
    assert "1 image files are in neither split (first: " in text and "b.jpg)" in text
    file = folder / "data/JPEGImages/a.jpg"
    file.write_bytes(file.read_bytes().replace(b"\xff\xdb", b"\xff\xfe"))  # no quantization table
    text = said(caplog, "data=voc", "data.root=data", code=1)
    assert text.count("1  images that cannot be decoded") == 2
    assert "error: a training run would end: train data: 1 images" in capsys.readouterr().err
    assert "cannot be decoded" not in said(caplog, "data=voc", "data.root=data", "images=false")


def test_of_many_classes_the_ends_are_listed() -> None:
    numbers = np.arange(1230)
    many = SimpleNamespace(
        class_names=[f"class {n}" for n in numbers], class_frequencies=lambda: numbers
    )
    text = check_data.classes(many)  # type: ignore[arg-type]
    assert text.startswith(
        f"{numbers.sum()} of 1230 classes, 1 of them without any; most class 1229"
    )
    assert text.endswith("class 1 1, class 0 0") and len(text) < 600


def test_check_data_finds_the_two_boxes_without_area_of_bccd(
    caplog: pytest.LogCaptureFixture, bccd: Path
) -> None:
    text = said(caplog, "data=bccd", f"data.root={bccd}", "images=false")
    assert "train: 292 images" in text and "val: 72 images" in text
    found = [row.split() for row in text.splitlines() if "boxes without area" in row]
    assert sum(int(row[1]) for row in found) == 2 and {row[0] for row in found} == {"dropped"}


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_python_m_train_with_the_real_network(folder: Path) -> None:
    tiny = [v for v in ONE_EPOCH if "train_images" not in v]
    done = python("-m", "frcnn.train", *tiny, "data.train_images=2", "data.val_images=1",
                  "sampler=ohem", f"hydra.run.dir={folder}/run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert status(folder / "run")["status"] == "COMPLETED"
    assert json.loads((folder / "run/summary.json").read_text())["steps"] == 1
    saved = checkpoint.load(folder / "run/checkpoints/best.pt")
    assert sum(v.numel() for v in saved["model"].values()) > 28e6
    assert torch.isfinite(saved["model"]["roi_heads.box_head.fc6.weight"]).all()


def test_help_lists_the_choices_without_torch() -> None:
    done = python("-X", "importtime", "-m", "frcnn.train", "--help")
    assert done.returncode == 0
    for group in ("sampler", "sampler/rcnn", "loss/rpn", "data"):
        names = ", ".join(options(group))
        assert f"{group}: {names}\n" in done.stdout
    assert "precision" in done.stdout and "python -m frcnn.train" in done.stdout
    assert "torch" not in {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}


def test_hydra_full_error_shows_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frcnn.errors import ConfigError

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with command_line("trainer.epochs=0", f"hydra.run.dir={folder}"), pytest.raises(ConfigError):
        train.main()
    assert os.environ["HYDRA_FULL_ERROR"] == "1"
