"""What a run's folder says of how it ended."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from tiny import file_size_limit

from frcnn.errors import ConfigError, UserError
from frcnn.status import recorded


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
    with pytest.raises(type(error)), recorded(tmp_path, ["seed=1"]):
        assert status(tmp_path)["status"] == "RUNNING"
        raise error
    assert status(tmp_path)["status"] == expected
    assert status(tmp_path)["overrides"] == ["seed=1"]
    assert (tmp_path / "traceback.txt").exists() == (expected == "FAILED")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(143)])
def test_a_full_disk_does_not_change_how_a_run_ends(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as ended, ExitStack() as disk, recorded(tmp_path, []):
        disk.enter_context(file_size_limit(0))
        raise error
    assert ended.value is error
    assert status(tmp_path)["status"] == "RUNNING"  # what could be written before


def test_a_refused_command_leaves_the_record_of_the_run_before(tmp_path: Path) -> None:
    with recorded(tmp_path, ["sampler=random"]):
        pass
    before = status(tmp_path)
    assert before["status"] == "COMPLETED"
    with pytest.raises(ConfigError), recorded(tmp_path, ["sampler=ohem"]):
        raise ConfigError("trained with another sampler")
    assert status(tmp_path) == before
    with pytest.raises(ZeroDivisionError), recorded(tmp_path, ["sampler=random"]):
        raise ZeroDivisionError
    before = status(tmp_path), (tmp_path / "traceback.txt").read_text()
    with pytest.raises(ConfigError), recorded(tmp_path, ["sampler=ohem"]):
        raise ConfigError("trained with another sampler")
    assert (status(tmp_path), (tmp_path / "traceback.txt").read_text()) == before
    with pytest.raises(ConfigError), recorded(tmp_path / "..", ["sampler=ohem"]):
        raise ConfigError("in a folder without a run")
    assert status(tmp_path / "..")["status"] == "FAILED"
