"""Learned weights in whole tiny runs: they learn, survive an interruption, and are refused well."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import SMALL, SMALL_DENSE, call, small_network, the_same

from frcnn import train
from frcnn.evaluation.load import load_trained
from frcnn.runfolder import checkpoint
from frcnn.training.loop import Engine

LEARNED = {
    "two stages": (*SMALL, "weigher/rpn=swn", "weigher/rcnn=swn", "sampler=ohem"),
    "one stage": (*SMALL_DENSE, "weigher=swn"),
}


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with small_network():
        yield


def trained(folder: Path, options: tuple[str, ...], code: int = 0) -> dict:
    """``last.pt`` of a run of twelve steps."""
    assert call(train.main, *options, f"hydra.run.dir={folder}") == code
    return checkpoint.load(folder / "checkpoints/last.pt")


@pytest.mark.parametrize("options", LEARNED.values(), ids=LEARNED)
def test_a_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    whole = trained(tmp_path / "whole", options)
    sites = {name.partition(".")[0] for name in whole["sites"]}
    assert whole["own_optimizers"].keys() == {f"{site}.weigher" for site in sites}
    for site in sites:  # twelve steps of Adam, which begin at zero
        assert whole["sites"][f"{site}.weigher.out.bias"].abs().min() > 1e-4
    step = Engine.train_step

    def fatal(self: Engine, group: list) -> dict[str, float]:
        if self.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "train_step", fatal)
        trained(tmp_path / "cut", options, code=143)
    again = trained(tmp_path / "cut", options)
    assert the_same(tmp_path / "cut", tmp_path / "whole")
    assert all(again["sites"][key].equal(value) for key, value in whole["sites"].items())
    loaded = load_trained(str(tmp_path / "cut/checkpoints/last.pt"), "cpu", "fp32")
    for site in sites:
        weigher = loaded.detector.sites[site].weigher
        bias = whole["sites"][f"{site}.weigher.out.bias"]
        assert isinstance(weigher, torch.nn.Module) and weigher.out.bias.equal(bias)


@pytest.mark.parametrize("key", ["swn.limit", "equal_terms.size"])
def test_a_value_out_of_range_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    name, _, last = key.partition(".")
    chosen = f"weigher/rcnn={name}", f"weigher.rcnn.{last}=0"
    assert call(train.main, *SMALL, *chosen, f"hydra.run.dir={tmp_path}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: weigher.rcnn.{last} must be above 0, got 0"
