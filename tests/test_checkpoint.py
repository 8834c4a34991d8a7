"""A checkpoint is whole, old or new, and reading one runs nothing."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import sigterm_at_save

from frcnn.errors import UserError
from frcnn.evaluation.load import refuse_untrusted
from frcnn.runfolder import checkpoint
from frcnn.runfolder.signals import Stop, stop_on_signals
from frcnn.runfolder.versions import config_from_version_1

CONTENT: dict[str, Any] = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3)},
    "config": {"seed": 3, "sizes": [1, 2.5], "none": None, "flag": True},
    "class_names": ["RBC"],
    "category_ids": ["RBC"],
    "step": 7,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "deep/er/last.pt"
    checkpoint.save(path, CONTENT)
    return path


def test_reads_what_was_written_and_leaves_nothing_beside_it(saved: Path) -> None:
    found = checkpoint.load(saved)
    assert torch.equal(found["model"].pop("weight"), CONTENT["model"]["weight"])
    assert found == {**CONTENT, "model": {}, "version": checkpoint.VERSION}
    assert os.listdir(saved.parent) == ["last.pt"]


def full_disk(content: Any, file: Any) -> None:
    file.write(b"half of it")
    raise OSError(28, "No space left on device")


def broken_stream(content: Any, file: Any) -> None:
    raise RuntimeError("PytorchStreamWriter failed writing file")


@pytest.mark.parametrize("fault", [full_disk, broken_stream])
def test_a_write_that_fails_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(torch, "save", fault)
    with pytest.raises(UserError, match=r"last\.pt: cannot be written"):
        checkpoint.save(saved, {**CONTENT, "step": 8})
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["last.pt"]


def test_a_killed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = saved.read_bytes()
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, {**CONTENT, "step": 8})
    assert saved.read_bytes() == before


def test_a_signal_in_a_write_stays_a_signal(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer makes a RuntimeError of what ends it, "unexpected pos"."""
    before = saved.read_bytes()
    sigterm_at_save(1, monkeypatch)
    with pytest.raises(Stop) as caught, stop_on_signals():
        checkpoint.save(saved, {**CONTENT, "step": 8})
    assert caught.value.code == 143
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["last.pt"]


def test_no_folder_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(tmp_path / "file/last.pt", CONTENT)


class Malicious:
    """Touches a file when a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({**CONTENT, "extra": Malicious(trap)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malicious(trap)))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match="not a readable checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not trap.exists()


@pytest.mark.parametrize("size", [0, 1, 100, -1, -300])
def test_a_truncated_file_is_one_line(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(UserError, match=r"last\.pt: not a readable checkpoint") as caught:
        checkpoint.load(saved)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt: no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello\n")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "text.pt")
    for content in (CONTENT["model"], [1], CONTENT):  # CONTENT alone has no version
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(UserError, match="not a checkpoint of this project"):
            checkpoint.load(tmp_path / "weights.pt")
    torch.save({**CONTENT, "version": 99}, tmp_path / "new.pt")
    with pytest.raises(UserError, match="version 99, this code reads 1"):
        checkpoint.load(tmp_path / "new.pt")


def test_the_factors_of_a_version_1_checkpoint_keep_their_terms() -> None:
    thresholds = [f"{site}_{part}_iou_thresh" for site in ("rpn", "box") for part in ("fg", "bg")]
    factors = {"objectness": 2, "rpn_box_reg": 3, "classifier": 4, "box_reg": 5}
    old = {"model": dict.fromkeys(thresholds, 0.5), "loss_weight": factors}
    expected = {"rpn": {"class": 2, "box": 3}, "rcnn": {"class": 4, "box": 5}}
    assert config_from_version_1(old)["loss_weight"] == expected


OURS = ["frcnn.losses.SmoothL1", "frcnn.losses.GHMC", "frcnn.data.shapes", "frcnn.data.coco2017"]
FOREIGN = ["os.system", "builtins.eval", "frcnn.errors.os.system", "samplers.torch.load",
           "frcnn.training.schedules.math.e", "frcnn.build.dataset", "torch.load", "samplersx.A", 3,
           "torch.optim.sgd.torch.load", None, "", "torch.optim.SGD", "torch.optim.lr_scheduler",
           "samplers.__loader__", "frcnn.losses.__builtins__", "frcnn.data.make_loader",
           "frcnn.data.transforms.torch", "${oc.env:HOME}"]  # fmt: skip


@pytest.mark.parametrize("target", OURS)
def test_classes_of_this_project_may_be_built(target: str) -> None:
    refuse_untrusted({"loss": {"rpn": {"_target_": target, "_partial_": True, "x": 1}}}, "a.pt")


@pytest.mark.parametrize("target", FOREIGN)
def test_foreign_classes_are_refused_wherever_they_stand(target: Any) -> None:
    node = {"_target_": target}
    for config in (node, {"sampler": {"rpn": node}}, {"a": [1, [{"b": node}]]}):
        with pytest.raises(UserError, match=r"^a\.pt: .* is not this project's code"):
            refuse_untrusted(config, "a.pt")
