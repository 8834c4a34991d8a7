"""The peak memory that a run reports is its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import small_network, tiny

from frcnn.errors import UserError
from frcnn.parallel import memory
from frcnn.runfolder import checkpoint
from frcnn.runfolder.signals import Stop
from frcnn.training.loop import Engine
from frcnn.training.run import run

CPU = torch.device("cpu")
TAKEN = 300.0  # megabytes that a hungry step takes, and gives back

linux = pytest.mark.skipif(not memory.reset_peak(CPU), reason="needs the /proc of Linux")


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with small_network():
        yield


def take() -> None:
    torch.ones(int(TAKEN * memory.MB), dtype=torch.uint8)


@contextmanager
def hungry(stop_at: int | None = None) -> Iterator[None]:
    """Every step takes ``TAKEN`` for a moment; a signal as step ``stop_at`` begins."""
    step = Engine.train_step

    def taking(self: Engine, group: Any) -> dict[str, float]:
        if self.step == stop_at:
            raise Stop
        take()
        return step(self, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "train_step", taking)
        yield


def peak(folder: Path) -> float:
    """Of a run of two steps in this folder."""
    run(*tiny("trainer.max_steps=2"), folder)
    return json.loads((folder / "summary.json").read_text())["peak_memory_mb"]


@linux
def test_a_peak_is_of_what_came_after_it_was_forgotten() -> None:
    memory.reset_peak(CPU)
    before = memory.peak_mb(CPU)
    take()
    assert memory.peak_mb(CPU) == pytest.approx(before + TAKEN, abs=40)
    memory.reset_peak(CPU)
    assert memory.peak_mb(CPU) == pytest.approx(before, abs=40)


@linux
def test_a_run_that_takes_more_says_more_and_the_next_one_does_not(tmp_path: Path) -> None:
    peak(tmp_path / "first")  # what a first run loads stays for good
    usual = peak(tmp_path / "usual")
    with hungry():
        more = peak(tmp_path / "hungry")
    assert more == pytest.approx(usual + TAKEN, abs=60)
    assert peak(tmp_path / "again") == pytest.approx(usual, abs=60)


@linux
def test_a_resumed_run_keeps_its_peak(tmp_path: Path) -> None:
    with hungry(stop_at=1), pytest.raises(Stop):
        peak(tmp_path)
    last = tmp_path / "checkpoints/last.pt"
    before = checkpoint.load(last)
    assert peak(tmp_path) == round(before["peak_memory_mb"], 1)


@linux
def test_a_checkpoint_of_before_has_none_and_resumes(tmp_path: Path) -> None:
    with hungry(stop_at=1), pytest.raises(Stop):
        peak(tmp_path)
    last = tmp_path / "checkpoints/last.pt"
    content = checkpoint.load(last)
    hungry_peak = content.pop("peak_memory_mb")
    torch.save(content | {"peak_memory_mb": [hungry_peak]}, last)
    with pytest.raises(UserError, match="resume="):  # no run saved that
        peak(tmp_path)
    torch.save(content, last)
    assert 0 < peak(tmp_path) < hungry_peak - TAKEN / 2


def test_a_system_that_does_not_tell_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "no/such")
    assert not memory.reset_peak(CPU)
    assert peak(tmp_path / "run") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpus_peak_is_what_was_given_out_since_it_was_forgotten() -> None:
    gpu = torch.device("cuda")
    for _ in range(2):
        assert memory.reset_peak(gpu)
        before = memory.peak_mb(gpu)
        torch.ones(int(TAKEN * memory.MB), dtype=torch.uint8, device=gpu)
        assert memory.peak_mb(gpu) == pytest.approx(before + TAKEN, abs=3)
