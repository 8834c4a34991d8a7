"""The tracker: what lands in metrics.jsonl, and what W&B's own reader finds in an offline run."""

import errno
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import file_size_limit, history, leet, records

from frcnn.errors import UserError
from frcnn.tracking.tracker import BoxedImage, Tracker

CONFIG = {"seed": 3, "trainer": {"epochs": 2}, "sampler": {"rcnn": {"quantity": 512}}}
CHOICES = {"sampler": "ohem", "sampler/rcnn": "ohem", "loss/rpn": "cross_entropy"}


def tracker(
    folder: Path, mode: str = "disabled", state: dict[str, Any] | None = None, **wandb: Any
) -> Tracker:
    options: dict[str, Any] = {"mode": mode, "project": "test"}
    options |= {"entity": None, "group": None, "name": None, "method": "sampler=ohem"}
    options |= {"tags": None, "dir": folder / "shared", **wandb}
    return Tracker(folder, options, CONFIG, CHOICES, state)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def runs(folder: Path) -> list[Path]:
    """The .wandb files under ``folder``, oldest first."""
    return sorted(folder.rglob("run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def picture(width: int = 40) -> Image.Image:
    return Image.new("RGB", (width, 30), "white")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One offline run with everything in it, as W&B's own reader gives it back."""
    folder = tmp_path_factory.mktemp("recorded")
    truth = {"boxes": torch.tensor([[1.0, 2.0, 30.0, 20.0]]), "labels": torch.tensor([2])}
    found = {
        "boxes": torch.tensor([[2.0, 3.0, 31.0, 21.0], [float("nan"), 0, 1, 1]]),
        "labels": torch.tensor([1, 1]),
        "scores": torch.tensor([0.75, 0.5]),
    }
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    images: list[Image.Image | BoxedImage] = [
        picture(20),
        (picture(), truth, found),
        (picture(), none, none),
    ]
    options: dict[str, Any] = {"group": "sweep1", "tags": ["ohem", "shapes"], "name": "ohem-3"}
    with tracker(folder, "offline", **options) as tracking:
        tracking.log({"step": 10, "train/loss": 2.0})
        tracking.log({"step": 20, "train/loss": float("nan"), "train/lr": 0.1})
        tracking.log({"step": 20, "epoch": 1, "val/AP": 0.5})
        tracking.log_table("val/per_class", ["class", "AP"], [["RBC", torch.tensor(0.5)]])
        tracking.log_images("val/images", images, ["RBC", "WBC"], epoch=1)
        tracking.log_histograms({"sampling/rpn/iou_positives": ([1, 3], [0.0, 0.5, 1.0])}, step=15)
        tracking.summary({"best/AP": torch.tensor(0.5), "last/AP": float("nan")})
        state = tracking.state_dict()
    (path,) = runs(folder)
    return {
        "folder": folder,
        "path": path,
        "records": records(path),
        "history": history(path),
        "state": state,
    }


def test_scalars_are_the_same_in_both_places(recorded: dict[str, Any]) -> None:
    assert lines(recorded["folder"]) == [
        {"step": 10, "train/loss": 2.0},
        {"step": 20, "train/loss": None, "train/lr": 0.1},
        {"step": 20, "epoch": 1, "val/AP": 0.5},
    ]
    sent = [{k: v for k, v in row.items() if k[0] != "_"} for row in recorded["history"][:3]]
    assert sent == [
        {"step": 10, "train/loss": 2.0},
        {"step": 20, "train/lr": 0.1},
        {"step": 20, "epoch": 1, "val/AP": 0.5},
    ]


def test_run_ends_with_its_columns_and_best_values(recorded: dict[str, Any]) -> None:
    records = recorded["records"]
    assert [r["exit"]["exit_code"] for r in records if r["type"] == "exit"] == [0]
    (run,) = [r["run"] for r in records if r["type"] == "run"]
    assert run["run_id"] == recorded["state"]["wandb_id"]
    assert (run["project"], run["display_name"], run["run_group"]) == ("test", "ohem-3", "sweep1")
    assert run["tags"] == ["ohem", "shapes"]
    assert {k: v for k, v in run["config"]["update"].items() if k != "_wandb"} == {
        "sampler": "ohem",
        "sampler_rcnn": "ohem",
        "loss_rpn": "cross_entropy",
        "method": "sampler=ohem",
        "seed": 3,
        "config": CONFIG,
    }
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert summary["best/AP"] == 0.5
    assert summary["last/AP"] is None  # was not a number


def test_metrics_are_drawn_against_step_and_epoch(recorded: dict[str, Any]) -> None:
    metrics = [r["metric"] for r in recorded["records"] if r["type"] == "metric"]
    axes = {m["glob_name"]: m["step_metric"] for m in metrics if "glob_name" in m}
    assert axes == {"train/*": "step", "sampling/*": "step", "val/*": "epoch"}


def test_true_and_predicted_boxes_are_two_sets_in_pixels(recorded: dict[str, Any]) -> None:
    (row,) = [row for row in recorded["history"] if "val/images.all_boxes" in row]
    bare, sets, empty = row["val/images.all_boxes"]
    files = recorded["path"].parent / "files"
    classes = {"1": "RBC", "2": "WBC"}
    assert bare is None
    assert json.loads((files / sets["ground_truth"]["path"]).read_text()) == {
        "box_data": [
            {
                "position": {"minX": 1, "minY": 2, "maxX": 30, "maxY": 20},
                "domain": "pixel",
                "class_id": 2,
                "box_caption": "WBC",
            }
        ],
        "class_labels": classes,
    }
    predicted = json.loads((files / sets["predictions"]["path"]).read_text())
    (box,) = predicted["box_data"]  # the one that is not a number is left out
    assert box["position"] == {"minX": 2, "minY": 3, "maxX": 31, "maxY": 21}
    assert (box["class_id"], box["box_caption"]) == (1, "RBC 0.75")
    assert box["scores"] == {"score": 0.75}
    # The bare picture is half as wide, and W&B takes one size for the whole list.
    with Image.open(files / row["val/images.filenames"][0]) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape == (30, 40)
    assert pixels[15, 10] > 250 and pixels[15, 35] < 5
    nothing = json.loads((files / empty["predictions"]["path"]).read_text())
    assert nothing == {"box_data": [], "class_labels": classes}


def test_media_stand_at_the_record_before_or_where_they_are_put(recorded: dict[str, Any]) -> None:
    (table,) = [row for row in recorded["history"] if "val/per_class._type" in row]
    assert table["epoch"] == 1
    assert (table["val/per_class.nrows"], table["val/per_class.ncols"]) == (1, 2)
    (histogram,) = [row for row in recorded["history"] if "sampling/rpn/iou_positives.bins" in row]
    assert histogram["step"] == 15
    assert histogram["sampling/rpn/iou_positives.values"] == [1, 3]
    assert histogram["sampling/rpn/iou_positives.bins"] == [0, 0.5, 1]


def test_failed_run_is_marked_and_the_next_one_is_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A sweep goes on in the same process; a resumed run has the id of the one before."""
    with pytest.raises(KeyboardInterrupt), tracker(tmp_path / "a", "offline", dir=tmp_path) as one:
        one.log({"step": 1, "train/loss": 1.0})
        raise KeyboardInterrupt
    with tracker(tmp_path / "b", "offline", dir=tmp_path) as two:
        two.log({"step": 1, "train/loss": 2.0})
        state = two.state_dict()
        two.log({"step": 2, "train/loss": 3.0})
    with tracker(tmp_path / "b", "offline", state, dir=tmp_path) as three:
        three.log({"step": 2, "train/loss": 4.0})
    *paths, resumed = runs(tmp_path)
    first, second = (json.loads(leet("--summary", path)) for path in paths)
    assert (first["state"], first["exit_code"], first["summary"]["train/loss"]) == ("failed", 1, 1)
    assert (second["state"], second["summary"]["train/loss"]) == ("finished", 3)
    assert first["run_id"] != second["run_id"]
    assert resumed.name == f"run-{second['run_id']}.wandb"
    assert [row["train/loss"] for row in lines(tmp_path / "b")] == [2, 4]
    # The row that was sent already has its number again, by which W&B knows it.
    rows = [(row["_step"], row["train/loss"]) for p in (paths[1], resumed) for row in history(p)]
    assert rows == [(0, 2), (1, 3), (1, 4)]
    assert capfd.readouterr() == ("", "")


def test_online_without_a_key_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    # W&B's own says the same in the end, but asks a network first.
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with caplog.at_level(logging.WARNING), tracker(tmp_path, "online") as tracking:
        tracking.log({"step": 1, "train/loss": 1.0})
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "frcnn.tracking.tracker"]
    assert "no API key" in warning and "wandb sync" in warning and "\n" not in warning
    (path,) = runs(tmp_path)
    assert path.parent.name.startswith("offline-run-")


def test_online_without_a_network_goes_on_offline_with_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stands in for 30 s of waiting: W&B's service, a key, and a server that cannot be reached."""
    import wandb

    calls: list[str] = []

    def init(**options: Any) -> Any:
        calls.append(f"{options['mode']} {options['id']}")
        if options["mode"] == "online":
            raise wandb.errors.CommError("no such host\nwhile retrying")
        return type(
            "Run", (), {"define_metric": lambda *_, **__: None, "finish": lambda *_, **__: 0}
        )()

    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: calls.append("teardown"))
    with tracker(tmp_path, "online") as tracking:
        run_id = tracking.state_dict()["wandb_id"]
    assert calls == [f"online {run_id}", "teardown", f"offline {run_id}"]
    assert "(no such host)" in caplog.text


def test_disabled_writes_metrics_only_and_does_not_load_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracker(tmp_path) as tracking:
        tracking.log({"step": 1, "train/loss": torch.tensor(0.5), "val/AP": float("inf")})
        tracking.log_table("val/per_class", ["class"], [["RBC"]])
        tracking.log_images("val/images", [picture()], ["RBC"])
        tracking.log_histograms({"sampling/rpn/iou": ([1], [0.0, 1.0])})
        tracking.summary({"best/AP": 0.5})
        # Readable while the run goes on, and after a kill.
        assert lines(tmp_path) == [{"step": 1, "train/loss": 0.5, "val/AP": None}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ["", '{"step": 2, "train/lo', '{"step": 2, "train/loss": 2.0}'])
def test_resuming_drops_what_was_written_since_and_half_a_line(tmp_path: Path, torn: str) -> None:
    with tracker(tmp_path) as tracking:
        tracking.log({"step": 1, "a": 1.0})
        tracking.log({"step": 2, "a": 2.0})
        state = tracking.state_dict()
        tracking.log({"step": 2, "b": 3.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    with tracker(tmp_path, state=state) as tracking:
        tracking.log({"step": 2, "b": 4.0})
    assert lines(tmp_path) == [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 2, "b": 4}]


def test_a_new_run_starts_empty(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    with tracker(tmp_path):
        assert lines(tmp_path) == []


@pytest.mark.parametrize("left", [None, "", '{"step": 1}\n'])
def test_records_that_are_gone_are_missed(tmp_path: Path, left: str | None) -> None:
    with tracker(tmp_path) as tracking:
        tracking.log({"step": 1})
        tracking.log({"step": 2})
        state = tracking.state_dict()
    path = tmp_path / "metrics.jsonl"
    path.unlink()
    if left is not None:
        path.write_text(left)
    says = rf"metrics\.jsonl: {len(left or '')} bytes, but the checkpoint was saved after 24; put"
    with pytest.raises(UserError, match=says), tracker(tmp_path, state=state):
        pytest.fail("went on")
    assert (path.read_text() if path.exists() else None) == left


def test_the_names_of_a_run_s_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a run that has its last.pt has the records that go with it."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(os.fstat(d).st_ino) or real(d))
    with tracker(tmp_path):
        assert (tmp_path / "metrics.jsonl").exists()
        assert synced == [tmp_path.stat().st_ino]


def test_a_disk_that_turns_out_full_at_a_sync_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and quotas tell it no earlier."""

    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with tracker(tmp_path) as tracking:
        tracking.log({"step": 1})
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(Disk quota"):
            tracking.state_dict()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(File too large\)"),
        tracker(tmp_path) as tracking,
    ):
        tracking.log({"step": 1})
        state = tracking.state_dict()
        with file_size_limit(20):
            tracking.log({"step": 2, "train/loss": 1.0})
    with tracker(tmp_path, state=state):
        assert lines(tmp_path) == [{"step": 1}]
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/wandb: cannot be written \(Not a directory\)"),
        tracker(tmp_path / "b", "offline", dir=tmp_path / "file/wandb"),
    ):
        pass


def test_unknown_mode_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wandb.mode=dryrun .* offline, online, disabled"):
        tracker(tmp_path, "dryrun")
