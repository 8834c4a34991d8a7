"""Assigners in whole tiny runs: their states survive an interruption, and every preset trains."""

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import SMALL, call, lines, options, small_network, the_same, tiny

from frcnn import train
from frcnn.evaluation.load import load_trained
from frcnn.runfolder import checkpoint
from frcnn.training.loop import Engine
from frcnn.training.run import run

# Two updates in each half of twelve steps.
DYNAMIC = [
    "assigner=dynamic_iou", "assigner.rcnn.interval=4", "assigner.rcnn.min_threshold=0.05",
    "assigner.rcnn.top=4", "box_loss=dynamic_smooth_l1", "box_loss.rcnn.interval=3",
    "box_loss.rcnn.beta=50",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with small_network():
        yield


def trained(folder: Path, code: int = 0) -> dict[str, torch.Tensor]:
    """A run of twelve steps; the states of its sites."""
    assert call(train.main, *SMALL, *DYNAMIC, f"hydra.run.dir={folder}") == code
    return checkpoint.load(folder / "checkpoints/last.pt")["sites"]


def test_a_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole")
    assert whole["rcnn.assigner.threshold"] != 0.5
    assert 0 < whole["rcnn.box_loss.now"] < 50
    step = Engine.train_step

    def fatal(self: Engine, group: list) -> dict[str, float]:
        if self.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "train_step", fatal)
        cut = trained(tmp_path / "cut", code=143)
    # Within an interval of both, so that what is recorded counts.
    assert cut["rcnn.assigner.steps"] > 0 and cut["rcnn.box_loss.steps"] >= 0
    again = trained(tmp_path / "cut")
    assert the_same(tmp_path / "cut", tmp_path / "whole")
    assert again.keys() == whole.keys() and all(again[key].equal(whole[key]) for key in whole)
    loaded = load_trained(str(tmp_path / "cut/checkpoints/last.pt"), "cpu", "fp32")
    assigner = loaded.detector.sites["rcnn"].assigner
    assert assigner.threshold.equal(whole["rcnn.assigner.threshold"])


@pytest.mark.parametrize("name", options("assigner"))
def test_every_preset_trains_and_validates(tmp_path: Path, name: str) -> None:
    run(*tiny(f"assigner={name}", "loss=quality_focal", "trainer.max_steps=2"), tmp_path)
    values = [v for r in lines(tmp_path) for key, v in r.items() if "loss" in key]
    assert len(values) >= 10 and all(math.isfinite(value) for value in values)


def test_assigners_that_the_preset_leaves_out_serve_at_the_head(tmp_path: Path) -> None:
    for name in ("top_n", "task_aligned"):
        run(*tiny(f"assigner/rcnn={name}", "trainer.max_steps=2"), tmp_path / name)
        assert any("train/loss_classifier" in record for record in lines(tmp_path / name))


def test_a_kind_of_site_that_cannot_have_it_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(train.main, "assigner/rcnn=atss", *SMALL, f"hydra.run.dir={tmp_path}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ATSS cannot serve at the rcnn: ")
