"""Whole commands in several processes: started by the run itself, and by torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SMALL, lines, the_same

from frcnn.data import AspectGroupedBatches
from frcnn.evaluation.inference import load_detections
from frcnn.runfolder import checkpoint

ROOT = Path(__file__).parents[1]
FEW = [*SMALL, "model=fasterrcnn_resnet18_fpn_slim", "trainer.log_every=1", "optimizer.lr=0.001"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
# More steps than any test waits for.
FOREVER = "trainer.epochs=10000"
# 12 steps of 4 images, saved after each.
LONG = ("trainer.epochs=4", "trainer.checkpoint_minutes=0")
TWO = "trainer.devices=2"

pytestmark = pytest.mark.slow


def started(
    *arguments: str, launcher: list[str] | None = None, few: list[str] = FEW, **variables: str
) -> subprocess.Popen:
    command = [*(launcher or [sys.executable]), "-m", "frcnn.train", *few, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=-1, start_new_session=True
    )


def tasks(*arguments: str, few: list[str] = FEW) -> list[subprocess.Popen]:
    """What srun would start."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(os.getpid())}
    return [
        started(*arguments, few=few, SLURM_PROCID=rank, SLURM_LOCALID=rank, **step) for rank in "01"
    ]


def ended(process: subprocess.Popen, code: int = 0) -> str:
    """What it said; it must end with this code."""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, out + err
    return out + err


def error_line(said: str) -> str:
    """The one line of what failed; no other process complains after it."""
    (line,) = [row for row in said.splitlines() if row.startswith("error: ")]
    assert "leaked" not in said
    return line


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in lines(folder) if "train/loss" in record]


def status(folder: Path) -> str:
    return json.loads((folder / "status.json").read_text())["status"]


def reach_step(number: int, process: subprocess.Popen, folder: Path) -> None:
    """Wait until so many steps are done."""
    deadline = time.monotonic() + 200
    while not (folder / "metrics.jsonl").exists() or len(steps(folder)) < number:
        assert process.poll() is None and time.monotonic() < deadline, ended(process)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    ended(started(f"hydra.run.dir={folder}", TWO, *LONG))
    assert status(folder) == "COMPLETED" and steps(folder) == list(range(1, 13))
    return folder


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGUSR1)],
    ids=["the command", "all its processes"],
)
def test_two_processes_that_are_stopped_go_on_exactly(
    straight: Path, tmp_path: Path, send: Callable[[int, int], None], number: int
) -> None:
    command = (f"hydra.run.dir={tmp_path}", TWO, *LONG)
    process = started(*command)
    reach_step(4, process, tmp_path)
    send(process.pid, number)
    ended(process, 128 + number)
    assert status(tmp_path) == "INTERRUPTED"
    saved = checkpoint.load(tmp_path / "checkpoints/last.pt")["step"]
    assert 4 <= saved == steps(tmp_path)[-1] < 12
    ended(started(*command))
    assert status(tmp_path) == "COMPLETED" and the_same(straight, tmp_path)


def test_two_processes_that_are_killed_go_on_exactly(straight: Path, tmp_path: Path) -> None:
    command = (f"hydra.run.dir={tmp_path}", TWO, *LONG)
    process = started(*command)
    reach_step(5, process, tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    ended(process, -signal.SIGKILL)
    assert status(tmp_path) == "RUNNING"
    assert 4 <= checkpoint.load(tmp_path / "checkpoints/last.pt")["step"] < 12
    ended(started(*command))
    assert status(tmp_path) == "COMPLETED" and the_same(straight, tmp_path)


def test_a_sweep_of_two_processes_each(tmp_path: Path) -> None:
    few = (TWO, "trainer.epochs=1", "hydra.sweep.subdir=${hydra.job.num}")
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


def test_torchrun_that_is_stopped_goes_on_exactly(straight: Path, tmp_path: Path) -> None:
    command = (f"hydra.run.dir={tmp_path}", *LONG)
    process = started(*command, launcher=TORCHRUN)
    reach_step(4, process, tmp_path)
    process.send_signal(signal.SIGTERM)
    ended(process, 1)  # torchrun's own
    assert status(tmp_path) == "INTERRUPTED"
    assert 4 <= checkpoint.load(tmp_path / "checkpoints/last.pt")["step"] < 12
    ended(started(*command, launcher=TORCHRUN))
    assert status(tmp_path) == "COMPLETED" and the_same(straight, tmp_path)


def test_torchrun_says_what_failed_in_another_process(tmp_path: Path) -> None:
    bad = second_ones_image(tmp_path / "data")
    data = ("data=voc", f"data.root={tmp_path}/data", "data.train_split=all", "data.val_split=all")
    few = [text for text in FEW if not text.startswith("data.")]  # those of shapes
    said = ended(started(f"hydra.run.dir={tmp_path}/run", *data, launcher=TORCHRUN, few=few), 1)
    record = json.loads((tmp_path / "run/status.json").read_text())
    assert record["status"] == "FAILED" and bad in record["error"]
    assert bad in error_line(said) and "Connection closed" not in said


def agents(rendezvous: str, *arguments: str) -> list[subprocess.Popen]:
    """torchrun on two machines, both of them this one, with one process each."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    at = {
        "static": ["--master-addr=127.0.0.1", f"--master-port={port}"],
        "c10d": ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={port}"],
    }
    two = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    return [
        started(*arguments, launcher=[*two, *at[rendezvous], f"--node-rank={rank}"])
        for rank in (0, 1)
    ]


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_torchruns_agents_on_two_machines_are_one_run(
    straight: Path, tmp_path: Path, rendezvous: str
) -> None:
    said = [ended(agent) for agent in agents(rendezvous, f"hydra.run.dir={tmp_path}", *LONG)]
    assert sorted(text.count("after 12 steps") for text in said) == [0, 1]
    assert (tmp_path / "train.log").read_text().count("after 12 steps") == 1
    # Metrics of the global batch: the records are those of two processes of one machine.
    assert status(tmp_path) == "COMPLETED" and the_same(straight, tmp_path)


@pytest.mark.parametrize(
    ("killed", "line"),
    [
        (0, "error: lost the connection to the launcher or the first process"),
        (1, "error: process 0 of 2 lost the connection to another one"),
    ],
)
def test_an_agent_that_is_killed_ends_the_other_with_one_line(
    tmp_path: Path, killed: int, line: str
) -> None:
    both = agents("static", f"hydra.run.dir={tmp_path}", FOREVER)
    reach_step(3, both[0], tmp_path)
    children = Path(f"/proc/{both[killed].pid}/task/{both[killed].pid}/children").read_text()
    began = time.monotonic()
    for pid in (both[killed].pid, *map(int, children.split())):
        os.kill(pid, signal.SIGKILL)
    ended(both[killed], -signal.SIGKILL)
    said = ended(both[1 - killed], 1)  # torchrun's own
    assert time.monotonic() - began < 60
    assert error_line(said).startswith(line)
    # What stands before torchrun's own words.
    ours = said.partition("torch/distributed/elastic")[0]
    assert "Traceback" not in ours and "frame #" not in ours
    assert status(tmp_path) == ("FAILED" if killed else "RUNNING")


def test_sruns_tasks_are_one_run_and_say_once_what_fails(tmp_path: Path) -> None:
    first, second = tasks(f"hydra.run.dir={tmp_path}/run", "trainer.epochs=1")
    assert "after 3 steps" in ended(first) and "after 3 steps" not in ended(second)
    assert status(tmp_path / "run") == "COMPLETED" and steps(tmp_path / "run") == [1, 2, 3]
    bad = second_ones_image(tmp_path / "data")
    data = ("data=voc", f"data.root={tmp_path}/data", "data.train_split=all", "data.val_split=all")
    few = [text for text in FEW if not text.startswith("data.")]
    first, second = tasks(f"hydra.run.dir={tmp_path}/bad", *data, few=few)
    assert bad in error_line(ended(first, 1)) and bad not in ended(second, 1)
    assert status(tmp_path / "bad") == "FAILED"


def second_ones_image(root: Path) -> str:
    """A VOC folder whose images are whole but for one of the second process; that one's name.

    A run does not see the damage at its start.
    """
    bad = f"{next(iter(AspectGroupedBatches(np.ones(8), 4, 0, 1, 2)))[0][1]}.jpg"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in map(str, range(8)):
        Image.fromarray(noise).save(root / f"JPEGImages/{name}.jpg")
        text = f"<annotation>{size}<object><name>cat</name>{box}</object></annotation>"
        (root / f"Annotations/{name}.xml").write_text(text)
    whole = (root / "JPEGImages" / bad).read_bytes()
    (root / "JPEGImages" / bad).write_bytes(without_huffman_codes(whole))
    (root / "ImageSets/Main/all.txt").write_text("\n".join(map(str, range(8))))
    return bad


def without_huffman_codes(jpeg: bytes) -> bytes:
    """A JPEG file with an impossible table of codes: its header and its end are right."""
    counts = jpeg.index(b"\xff\xc4") + 5  # after the marker, the length and the table's number
    return jpeg[:counts] + b"\xff" * 16 + jpeg[counts + 16 :]


def test_torchrun_without_a_folder_is_refused() -> None:
    assert "add run_name=NAME" in ended(started(launcher=TORCHRUN), 1)
