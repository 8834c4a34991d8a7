"""What long tails need, in whole tiny runs: counters, draws and orders survive an interruption."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import SMALL, call, small_network, the_same

from frcnn import train
from frcnn.evaluation.load import load_trained
from frcnn.runfolder import checkpoint
from frcnn.sites.site import Site
from frcnn.training.loop import Engine

TAIL = ["data.num_classes=8", "data.tail_exponent=1.0", "data.num_objects=[1,4]"]
LINES = {
    "equalization_v2": ["loss=equalization_v2", "sampler=ohem"],
    "seesaw": ["loss=seesaw", "trainer.accumulate=2", "trainer.accumulate_stats=step"],
    "federated": ["loss=federated", "loss.rcnn.num_classes=4"],
    "repeat_factor": ["data.sampler=repeat_factor", "data.repeat_threshold=1.0"],
    "class_aware": ["data.sampler=class_aware", "trainer.workers=1"],
}


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with small_network():
        yield


def trained(folder: Path, line: list[str], code: int = 0) -> dict[str, torch.Tensor]:
    """A run; the states of its sites."""
    assert call(train.main, *SMALL, *TAIL, *line, f"hydra.run.dir={folder}") == code
    return checkpoint.load(folder / "checkpoints/last.pt")["sites"]


@pytest.mark.parametrize("name", LINES)
def test_a_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = trained(tmp_path / "whole", LINES[name])
    step = Engine.train_step

    def fatal(self: Engine, group: list) -> dict[str, float]:
        if self.step == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "train_step", fatal)
        cut = trained(tmp_path / "cut", LINES[name], code=143)
    again = trained(tmp_path / "cut", LINES[name])
    assert the_same(tmp_path / "cut", tmp_path / "whole")
    assert again.keys() == whole.keys() and all(again[key].equal(whole[key]) for key in whole)
    assert all(not cut[key].equal(whole[key]) for key in whole if "class_loss" in key)
    load_trained(str(tmp_path / "cut/checkpoints/last.pt"), "cpu", "fp32")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("loss/rpn=seesaw", "Seesaw cannot serve at the rpn: it compares "),
        ("loss/rpn=federated", "Federated cannot serve at the rpn: it draws "),
        ("loss/rpn=equalization_v2", "EqualizationV2 cannot serve at the rpn: it compares "),
        ("loss=seesaw loss.rcnn.p=-1", "loss.rcnn.p must be finite and at least 0, got -1"),
        ("loss=equalization_v2 loss.rcnn.gamma=0", "loss.rcnn.gamma must be above 0, got 0"),
        ("loss=federated loss.rcnn.num_classes=0", "loss.rcnn.num_classes must be at least 1"),
        (
            "data.sampler=balanced",
            "data.sampler: expected one of repeat_factor, class_aware or null",
        ),
        ("data.repeat_threshold=0", "data.repeat_threshold: expected a number above 0"),
        ("data.swapped_classes=2", "data.swapped_classes: expected a number between 0 and 1"),
        ("data.num_classes=99", "num_classes=99: needs 1 to 72"),
    ],
)
def test_what_makes_no_sense_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    small = ["data.train_images=2", "data.val_images=1", f"hydra.run.dir={tmp_path}"]
    assert call(train.main, *small, *override.split()) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {says}")


def test_counters_count_each_positive_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under OHEM, which previews, and with validations between."""
    seen: list[torch.Tensor] = []
    losses = Site.losses

    def counting(self: Site, *arguments) -> dict[str, torch.Tensor]:
        if self.training and self.name == "rcnn" and torch.is_grad_enabled():
            seen.append(arguments[0].labels[arguments[1]])
        return losses(self, *arguments)

    monkeypatch.setattr(Site, "losses", counting)
    found = trained(tmp_path, ["loss=seesaw", "sampler=ohem"])["rcnn.class_loss.counts"]
    assert found.equal(torch.bincount(torch.cat(seen), minlength=9)[1:])
