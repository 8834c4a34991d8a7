"""Whole commands in several processes: started by the run itself, and by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import SMALL, lines

from frcnn import checkpoint
from frcnn.validation import load_detections

ROOT = Path(__file__).parents[1]
FEW = [*SMALL, "model=fasterrcnn_resnet18_fpn_slim", "trainer.log_every=1", "optimizer.lr=0.001"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]

pytestmark = pytest.mark.slow


def started(*arguments: str, launcher: list[str] | None = None) -> subprocess.Popen:
    command = [*(launcher or [sys.executable]), "-m", "frcnn.train", *FEW, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=-1, start_new_session=True
    )


def ended(process: subprocess.Popen, code: int = 0) -> str:
    """What it said; it must end with this code."""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, out + err
    return out + err


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in lines(folder) if "train/loss" in record]


def status(folder: Path) -> str:
    return json.loads((folder / "status.json").read_text())["status"]


def test_a_run_of_two_processes_that_is_stopped_goes_on(tmp_path: Path) -> None:
    command = (f"hydra.run.dir={tmp_path}", "trainer.devices=2", "trainer.epochs=40")
    process = started(*command)
    deadline = time.monotonic() + 200
    while not (tmp_path / "metrics.jsonl").exists() or len(steps(tmp_path)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, ended(process)
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    ended(process, 143)
    assert status(tmp_path) == "INTERRUPTED"
    reached = checkpoint.load(tmp_path / "checkpoints/last.pt")["step"]
    assert 3 <= reached < 120
    ended(started(*command[:2], f"trainer.epochs={reached // 3 + 1}", "trainer.eval_every=50"))
    assert status(tmp_path) == "COMPLETED"
    assert steps(tmp_path) == list(range(1, 3 * (reached // 3 + 1) + 1))


def test_a_sweep_of_two_processes_each(tmp_path: Path) -> None:
    few = ("trainer.devices=2", "trainer.epochs=1", "hydra.sweep.subdir=${hydra.job.num}")
    for outcome in ("2 new", "2 finished before"):
        said = ended(started(f"hydra.sweep.dir={tmp_path}", *few, "seed=0,1", "-m"))
        assert outcome in said
        assert [status(tmp_path / job) for job in "01"] == ["COMPLETED"] * 2
        assert [steps(tmp_path / job) for job in "01"] == [[1, 2, 3]] * 2
    found = load_detections(tmp_path / "0/detections.npz")
    assert [image["image_id"] for image in found] == [0, 1, 2, 3]  # of both processes


def test_torchruns_processes_are_one_run(tmp_path: Path) -> None:
    said = ended(started(f"hydra.run.dir={tmp_path}", "trainer.epochs=1", launcher=TORCHRUN))
    assert status(tmp_path) == "COMPLETED" and steps(tmp_path) == [1, 2, 3]
    assert said.count("after 3 steps") == 1
    assert (tmp_path / "train.log").read_text().count("after 3 steps") == 1


def test_torchrun_without_a_folder_is_refused() -> None:
    assert "add run_name=NAME" in ended(started(launcher=TORCHRUN), 1)
