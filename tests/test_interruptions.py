"""Commands that are stopped, refused or run out of disk: exit codes, one line, nothing lost."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    SMALL,
    call,
    file_size_limit,
    history,
    lines,
    sigterm_at_save,
    small_network,
    the_same,
    without_times,
)
from torch.utils.data import get_worker_info

import frcnn.config.compose
import frcnn.training.validation
from frcnn import train
from frcnn.data import DetectionDataset
from frcnn.errors import ConfigError
from frcnn.runfolder import checkpoint
from frcnn.training.checkpoints import Checkpoints
from frcnn.training.loop import Engine

# Two epochs of three steps; a log line every second.
LINE = [*SMALL, "data.train_images=6", "data.val_images=2", "trainer.log_every=2"]


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with small_network():
        yield


def command(folder: Path, *more: str) -> int:
    return call(train.main, *LINE, f"hydra.run.dir={folder}", *more)


def status(folder: Path) -> str:
    return json.loads((folder / "status.json").read_text())["status"]


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoints/last.pt")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failed command ends with."""
    error = capsys.readouterr().err
    assert "Traceback" not in error, error
    (line,) = [row for row in error.splitlines() if row.startswith("error: ")]
    assert error.rstrip().endswith(line)
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert command(folder) == 0
    return folder


def before(name: str, count: int, act: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Act within call number ``count`` of a function of the engine's or of the validation's."""
    place = Engine if hasattr(Engine, name) else frcnn.training.validation
    real, calls = getattr(place, name), iter(range(1, 1000))

    def patched(*arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            act()
        return real(*arguments, **options)

    patch.setattr(place, name, patched)


SIGNALS = [
    (signal.SIGTERM, 143),
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_a_step_finishes_and_saves_it(
    straight: Path, tmp_path: Path, number: int, code: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before("_update", 1, lambda: signal.raise_signal(number), patch)
        assert command(tmp_path) == code
    assert last(tmp_path)["step"] == 1 and status(tmp_path) == "INTERRUPTED"
    assert not (tmp_path / "traceback.txt").exists()
    assert command(tmp_path) == 0 and the_same(tmp_path, straight)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 1]


def test_a_run_called_after_the_time_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        before("_update", 1, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert call(train.main, *LINE) == 143
    says = r"stopped after step 1; to go on, add (run_name=\S+) to the same command$"
    (name,) = re.findall(says, "".join(capsys.readouterr()), re.MULTILINE)
    assert call(train.main, *LINE, name) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    starts = json.loads((folder / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 1]


def test_a_signal_in_a_validation_leaves_it_for_later(straight: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before("coco_metrics", 1, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert command(tmp_path) == 143
    assert last(tmp_path)["step"] == 3 and not any("val/AP" in row for row in lines(tmp_path))
    assert command(tmp_path) == 0 and the_same(tmp_path, straight)


@pytest.mark.slow
def test_a_signal_as_a_validation_is_recorded_does_not_double_it(
    straight: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        real = Checkpoints.keep_best

        def stopped(*arguments: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            real(*arguments)

        patch.setattr(Checkpoints, "keep_best", stopped)
        assert command(tmp_path) == 130
    assert last(tmp_path)["validated"] == 3
    assert command(tmp_path) == 0 and the_same(tmp_path, straight)


@pytest.mark.slow
def test_a_second_signal_saves_nothing(straight: Path, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        before("_update", 2, twice, patch)
        assert command(tmp_path) == 143
    assert last(tmp_path)["step"] == 0 and status(tmp_path) == "INTERRUPTED"
    assert command(tmp_path) == 0 and the_same(tmp_path, straight)


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(
    straight: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        finished = sigterm_at_save(2, patch)  # the first is that of step 0
        assert command(tmp_path, "trainer.checkpoint_minutes=0") == 143
    assert finished == [1, 2, 3]
    assert last(tmp_path)["step"] == 1 and status(tmp_path) == "INTERRUPTED"
    assert command(tmp_path) == 0 and the_same(tmp_path, straight)


@pytest.mark.slow
def test_a_second_signal_while_the_first_one_s_checkpoint_is_written_leaves(
    straight: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before("_update", 1, lambda: signal.raise_signal(signal.SIGTERM), patch)
        finished = sigterm_at_save(2, patch)
        assert command(tmp_path) == 143
    assert finished == [1]
    assert last(tmp_path)["step"] == 0 and status(tmp_path) == "INTERRUPTED"
    assert command(tmp_path) == 0 and the_same(tmp_path, straight)


def test_a_signal_while_the_configuration_is_checked_is_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = frcnn.config.compose.checked

    def checked(*arguments: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit as stop:  # as OmegaConf does where it takes back a flag
            raise ConfigError("a flag") from stop
        return real(*arguments)

    monkeypatch.setattr(frcnn.config.compose, "checked", checked)
    assert call(train.main, *SMALL, f"hydra.run.dir={tmp_path}") == 143
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "INTERRUPTED"


@pytest.mark.slow
def test_a_sweep_stops_as_a_whole(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before("_update", 2, lambda: signal.raise_signal(signal.SIGTERM), patch)
        sweep = ["seed=0,1", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${seed}", "-m"]
        assert call(train.main, *LINE, *sweep) == 143
    assert status(tmp_path / "0") == "INTERRUPTED" and not (tmp_path / "1").exists()


def in_worker(patch: pytest.MonkeyPatch, index: int, act: Callable[[], Any]) -> None:
    """What a data worker does as it reads the image."""
    real = DetectionDataset._image

    def patched(self: DetectionDataset, wanted: int) -> Any:
        if wanted == index and get_worker_info() is not None:
            act()
        return real(self, wanted)

    patch.setattr(DetectionDataset, "_image", patched)


def buggy() -> None:
    raise ValueError("two\nlines")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"died .*\(killed by signal: Killed\)"),
        pytest.param(lambda: os._exit(3), r"died .*\(exit code 3\)", marks=pytest.mark.slow),
        pytest.param(buggy, r"ValueError: two lines", marks=pytest.mark.slow),
    ],
    ids=["killed", "left", "raised"],
)
def test_a_worker_that_fails_is_named_with_its_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], act: Callable[[], Any], says: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        in_worker(patch, 5, act)
        assert command(tmp_path, "trainer.workers=1") == 1
    line = error_line(capsys)
    assert line.startswith("train-000005 (image id 5): ")
    assert re.search(says, line), line
    assert status(tmp_path) == "FAILED"


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_keep_a_stopped_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    in_worker(monkeypatch, 5, lambda: time.sleep(600))
    before = children()  # of other tests: W&B's service, multiprocessing's tracker
    timer = threading.Timer(3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert command(tmp_path, "trainer.workers=1") == 143
    timer.join()
    assert status(tmp_path) == "INTERRUPTED"
    time.sleep(0.5)
    assert not children() - before


def children() -> set[str]:
    """Ids of the processes that this one started."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize(
    "more", [[], pytest.param(["-m"], marks=pytest.mark.slow)], ids=["a run", "a sweep"]
)
def test_a_second_process_in_a_run_s_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    (tmp_path / "status.json").write_text('{"status": "RUNNING"}')
    read, write = os.pipe()
    owner = os.fork()
    if owner == 0:
        from frcnn.runfolder.files import locked

        with locked(tmp_path):
            os.write(write, b".")
            signal.pause()
    os.read(read, 1)
    try:
        sweep = [f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=."] if more else []
        assert command(tmp_path, *sweep, *more) == 1
        assert error_line(capsys).startswith(f"{tmp_path}: in use by process {owner};")
        assert status(tmp_path) == "RUNNING" and not (tmp_path / "checkpoints").exists()
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        os.close(read)
        os.close(write)


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_checkpoint_before(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before("_update", 4, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert command(tmp_path) == 143
    path = tmp_path / "checkpoints/last.pt"
    kept = path.read_bytes()
    with file_size_limit(len(kept) // 2):
        assert command(tmp_path) == 1
    assert error_line(capsys) == f"{path}: cannot be written (File too large)"
    assert path.read_bytes() == kept and status(tmp_path) == "FAILED"
    assert command(tmp_path) == 0 and the_same(tmp_path, straight)


def test_a_disk_that_is_full_from_the_start_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with file_size_limit(20_000):
        assert command(tmp_path) == 1
    assert "checkpoints/last.pt: cannot be written (" in error_line(capsys)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert command(tmp_path / "file/run") == 1
    assert "file/run" in error_line(capsys)


def test_a_checkpoint_that_is_damaged_is_named_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "trainer.max_steps=1") == 0
    path = tmp_path / "checkpoints/last.pt"
    damaged, records = path.read_bytes()[:-300], (tmp_path / "metrics.jsonl").read_bytes()
    path.write_bytes(damaged)
    assert command(tmp_path) == 1
    line = error_line(capsys)
    assert line.startswith(f"{path}: not a readable checkpoint")
    assert line.endswith("; resume=FILE goes on from a copy, resume=never anew")
    assert path.read_bytes() == damaged and (tmp_path / "metrics.jsonl").read_bytes() == records
    assert command(tmp_path, "resume=never", "trainer.max_steps=1") == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() != b"" and last(tmp_path)["step"] == 1


@pytest.mark.slow
def test_a_run_that_did_no_step_may_be_made_of_other_parts(straight: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before("train_step", 1, lambda: 1 / 0, patch)
        with pytest.raises(ZeroDivisionError):
            command(tmp_path, "seed=1")
    assert last(tmp_path)["config"]["seed"] == 1
    assert command(tmp_path) == 0 and the_same(tmp_path, straight)


@pytest.mark.slow
def test_deterministic_is_for_one_run(straight: Path, tmp_path: Path) -> None:
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        act = lambda: seen.append(torch.are_deterministic_algorithms_enabled())  # noqa: E731
        before("_update", 1, act, patch)
        for name in ("a", "b"):
            assert command(tmp_path / name, "trainer.deterministic=true") == 0
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert seen == [True] and the_same(tmp_path / "a", tmp_path / "b")
    assert command(tmp_path / "c", "trainer.max_steps=1") == 0
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_wandb_has_every_row_once_under_one_id(tmp_path: Path) -> None:
    offline = ["wandb.mode=offline", f"wandb.dir={tmp_path}", "trainer.num_pictures=1"]
    assert command(tmp_path / "straight", *offline) == 0
    (whole,) = tmp_path.rglob("run-*.wandb")
    for step in (2, 2):
        with pytest.MonkeyPatch.context() as patch:
            before("_update", step, lambda: signal.raise_signal(signal.SIGTERM), patch)
            assert command(tmp_path / "cut", *offline) == 143
    assert command(tmp_path / "cut", *offline) == 0
    identity = last(tmp_path / "cut")["tracker"]["wandb_id"]
    files = sorted(tmp_path.rglob(f"run-{identity}.wandb"), key=lambda p: p.stat().st_mtime_ns)
    assert len(files) == 3 and len(list(tmp_path.rglob("run-*.wandb"))) == 4
    rows = [row for file in files for row in history(file)]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert scalars(rows) == scalars(history(whole)) and len(rows) == len(history(whole))


def scalars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """W&B's rows of numbers, without what a clock measured."""
    clocks = {"_runtime", "_timestamp", "_wandb"}
    numbers = [row for row in rows if "train/loss" in row or "val/AP" in row]
    return without_times([{k: v for k, v in row.items() if k not in clocks} for row in numbers])


KILLED_IN_STEP_SIX = """
import os, signal, sys, time
from tiny import call, small_network
from frcnn import train
from frcnn.training.loop import Engine

real, updates = Engine._update, []

def update(*arguments):
    updates.append(1)
    if len(updates) == 6:
        time.sleep(1)  # W&B's service writes its file
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

Engine._update = update
with small_network():
    call(train.main, *sys.argv[1:])
"""


@pytest.mark.slow
def test_wandb_has_every_row_after_kill_9(tmp_path: Path) -> None:
    """Those since the checkpoint twice, with the numbers by which W&B knows them."""
    offline = ["wandb.mode=offline", f"wandb.dir={tmp_path}", "trainer.num_pictures=1"]
    offline += ["trainer.log_every=1"]
    assert command(tmp_path / "straight", *offline) == 0
    (whole,) = tmp_path.rglob("run-*.wandb")
    tests = Path(__file__).parent
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED_IN_STEP_SIX,
            *LINE,
            f"hydra.run.dir={tmp_path}/cut",
            *offline,
        ],
        # Not this process's W&B service: kill -9 would leave it the run.
        env={k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
        | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    kept = last(tmp_path / "cut")["tracker"]
    assert command(tmp_path / "cut", *offline) == 0
    files = sorted(tmp_path.rglob(f"run-{kept['wandb_id']}.wandb"), key=os.path.getmtime)
    first, second = (history(file) for file in files)
    everything = history(whole)
    assert len(list(tmp_path.rglob("run-*.wandb"))) == 3
    assert [row["_step"] for row in second] == list(range(kept["rows"], len(everything)))
    again = [row["_step"] for row in first if row["_step"] >= kept["rows"]]
    assert len(again) >= 2  # steps 4 and 5
    assert [row["_step"] for row in first] == list(range(again[-1] + 1))
    before = [row for row in first if row["_step"] < kept["rows"]]
    assert scalars(before + second) == scalars(everything)
    assert scalars(first) == scalars(everything[: len(first)])


def test_a_log_that_cannot_be_written_says_nothing_of_its_own() -> None:
    assert logging.raiseExceptions is False
