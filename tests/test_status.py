"""What a run's folder says of how it ended."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from tiny import file_size_limit

from frcnn.errors import ConfigError, UserError
from frcnn.runfolder.status import record_status, write_status


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("no file"), "FAILED"),
        (ValueError("a bug"), "FAILED"),
        (KeyboardInterrupt(), "INTERRUPTED"),
        (SystemExit(143), "INTERRUPTED"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, error: BaseException, expected: str) -> None:
    with pytest.raises(type(error)), record_status(tmp_path, ["seed=1"]):
        assert status(tmp_path)["status"] == "RUNNING"
        raise error
    assert status(tmp_path)["status"] == expected
    assert status(tmp_path)["overrides"] == ["seed=1"]
    assert (tmp_path / "traceback.txt").exists() == (expected == "FAILED")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(143)])
def test_a_full_disk_does_not_change_how_a_run_ends(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as ended, ExitStack() as disk, record_status(tmp_path, []):
        disk.enter_context(file_size_limit(0))
        raise error
    assert ended.value is error
    assert status(tmp_path)["status"] == "RUNNING"  # what could be written before


def test_a_refused_command_leaves_the_record_of_the_run_before(tmp_path: Path) -> None:
    with record_status(tmp_path, ["sampler=random"]):
        pass
    before = status(tmp_path)
    assert before["status"] == "COMPLETED"
    with pytest.raises(ConfigError), record_status(tmp_path, ["sampler=ohem"]):
        raise ConfigError("trained with another sampler")
    assert status(tmp_path) == before
    with pytest.raises(ZeroDivisionError), record_status(tmp_path, ["sampler=random"]):
        raise ZeroDivisionError
    before = status(tmp_path), (tmp_path / "traceback.txt").read_text()
    with pytest.raises(ConfigError), record_status(tmp_path, ["sampler=ohem"]):
        raise ConfigError("trained with another sampler")
    assert (status(tmp_path), (tmp_path / "traceback.txt").read_text()) == before
    with pytest.raises(ConfigError), record_status(tmp_path / "..", ["sampler=ohem"]):
        raise ConfigError("in a folder without a run")
    assert status(tmp_path / "..")["status"] == "FAILED"


ENDS = [UserError("no data"), ValueError("a bug"), KeyboardInterrupt(), SystemExit(143)]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_a_finished_run_that_did_not_go_on_stays_completed(
    tmp_path: Path, error: BaseException
) -> None:
    summary = tmp_path / "summary.json"
    with record_status(tmp_path, ["trainer.epochs=1"]):
        summary.write_text('{"seconds": 1}')
    before = (tmp_path / "status.json").read_text()
    with pytest.raises(type(error)), record_status(tmp_path, ["trainer.epochs=2"]):
        assert status(tmp_path)["status"] == "RUNNING"
        raise error
    assert (tmp_path / "status.json").read_text() == before
    assert not (tmp_path / "traceback.txt").exists()


@pytest.mark.parametrize("after", [None, '{"seconds": 2}'], ids=["in training", "at its end"])
@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_a_finished_run_that_went_on_says_how_that_ended(
    tmp_path: Path, error: BaseException, after: str | None
) -> None:
    summary = tmp_path / "summary.json"
    with record_status(tmp_path, ["trainer.epochs=1"]):
        summary.write_text('{"seconds": 1}')
    with pytest.raises(type(error)), record_status(tmp_path, ["trainer.epochs=2"]):
        summary.unlink()
        if after:
            summary.write_text(after)
        raise error
    expected = "FAILED" if isinstance(error, Exception) else "INTERRUPTED"
    assert status(tmp_path)["status"] == expected
    assert status(tmp_path)["overrides"] == ["trainer.epochs=2"]


def test_a_run_without_a_record_of_its_end_is_not_taken_for_finished(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    for before in (None, "FAILED", "INTERRUPTED", "RUNNING"):
        if before:
            write_status(tmp_path, before, [])
        with pytest.raises(KeyboardInterrupt), record_status(tmp_path, []):
            raise KeyboardInterrupt
        assert status(tmp_path)["status"] == "INTERRUPTED"
