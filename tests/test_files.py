"""Files are whole, old or new; a run's folder is one process's."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import file_size_limit

from frcnn.errors import UserError
from frcnn.runfolder.files import atomic_write, locked, write_text
from frcnn.runfolder.signals import Stop


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/a.json"
    for text in ("old\n", "new é\n"):
        write_text(path, text)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["a.json"]


def test_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between the two would else leave an empty file under the right name."""
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: calls.append(n) or f(*a))
    write_text(tmp_path / "a", "text")
    assert calls == ["fsync", "replace", "fsync"]  # the last one keeps the name


class Killed(BaseException):
    """Stands in for a signal."""


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_what_ends_a_write_early_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    path = tmp_path / "a"
    write_text(path, "old")
    monkeypatch.setattr(os, name, killed)
    with pytest.raises(Killed):
        write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_disk_that_is_full_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "old")
    with (
        file_size_limit(1000),
        pytest.raises(UserError, match=r"^\S+/a: cannot be written \(File too large\)$"),
    ):
        write_text(path, "x" * 1001)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_disk_that_is_full_as_a_run_is_stopped_is_named(tmp_path: Path) -> None:
    """The signal was before: it is no reason for what goes wrong now."""
    with pytest.raises(UserError, match=r"a: cannot be written \(File too large\)"):
        try:
            raise Stop(143)
        except Stop:
            with file_size_limit(10):
                write_text(tmp_path / "a", "x" * 11)


def test_a_disk_that_is_too_full_for_a_lock_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"\.lock: cannot be written \(File too large\)"),
        file_size_limit(0),
        locked(tmp_path),
    ):
        pytest.fail("went on")


def test_no_folder_can_be_made_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for use in (atomic_write(tmp_path / "file/a"), locked(tmp_path / "file/a")):
        with (
            pytest.raises(UserError, match=r"cannot be written \((Not a directory|File exists)"),
            use,
        ):
            pass


def elsewhere(folder: Path) -> str:
    """What another process says that wants to lock the folder."""
    code = (
        "import sys; from pathlib import Path; from frcnn.runfolder.files import locked\n"
        "try:\n    with locked(Path(sys.argv[1])): print('locked')\n"
        "except Exception as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_folder_is_one_process_s_until_it_is_done(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert elsewhere(tmp_path) == (
            f"{tmp_path}: in use by process {os.getpid()}; wait for it, or give this run another "
            "run_name"
        )
    assert elsewhere(tmp_path) == "locked"


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As a data worker does for some seconds after kill -9."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with locked(tmp_path):
            os.close(write)
            if os.fork():
                os.kill(os.getpid(), 9)
            os.read(read, 1)  # until the test is done
            os._exit(0)
    os.waitpid(parent, 0)
    os.close(read)
    try:
        assert elsewhere(tmp_path) == "locked"
    finally:
        os.close(write)


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with locked(tmp_path):
        assert f"{tmp_path}: no locks here (No locks available)" in caplog.text
