"""environment.json: what each start of a run ran on, and no secrets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import PIL
import pytest
import torch

from frcnn.errors import UserError
from frcnn.evaluation.coco import installed_backend
from frcnn.runfolder import environment
from frcnn.runfolder.environment import record_environment, record_settings

CPU = torch.device("cpu")


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / "environment.json").read_text())


def test_every_start_adds_one_and_a_new_run_begins_anew(tmp_path: Path) -> None:
    for step, expected in ((0, [0]), (7, [0, 7]), (9, [0, 7, 9]), (0, [0])):
        record_environment(tmp_path, CPU, "fp32", step, "auto")
        assert [entry["step"] for entry in entries(tmp_path)] == expected


def test_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "frcnn.train", "data.root=a b"])
    record_environment(tmp_path, CPU, "bf16", 0, "pycocotools")
    (entry,) = entries(tmp_path)
    assert entry["command"] == "python -m frcnn.train 'data.root=a b'"
    assert entry["torch"] == torch.__version__ and entry["threads"] == torch.get_num_threads()
    assert entry["python"] == ".".join(map(str, sys.version_info[:3]))
    assert entry["gpu"] is None and entry["processor"] and entry["cores"] >= 1
    assert entry["packages"]["numpy"] == numpy.__version__
    assert entry["packages"]["pillow"] == PIL.__version__
    assert entry["packages"]["wandb"] and entry["packages"]["hydra-core"]
    assert entry["evaluator"] == "pycocotools" and entry["precision"] == "bf16"
    assert "k" * 40 not in (tmp_path / "environment.json").read_text()


def test_the_evaluator_that_auto_stands_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_backend("auto") == "faster_coco_eval"
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # cannot be imported
    assert installed_backend("auto") == "pycocotools"


def test_a_gpu_s_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    found = environment.gpu(torch.device("cuda"))
    assert found["name"] == "a GPU" and found["cuda"] == torch.version.cuda
    assert found.keys() == {"name", "cuda", "cudnn", "driver"}


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for text in ("[{", "3"):
        (tmp_path / "environment.json").write_text(text)
        with pytest.raises(UserError, match=r"environment\.json: not readable .* move it away"):
            record_environment(tmp_path, CPU, "fp32", 5, "auto")


def git(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{a}_{b}": "a@b" for a in ("AUTHOR", "COMMITTER") for b in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.check_output(command, text=True, env=os.environ | who).strip()


def test_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.commit() == {"commit": None, "dirty": None}  # no clone
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    assert environment.commit() == clean
    (tmp_path / "results").mkdir()
    (tmp_path / "results/a").write_text("2")
    assert environment.commit() == clean | {"dirty": True}
    assert environment.commit("results") == clean
    (tmp_path / "a.py").write_text("2")
    assert environment.commit("results") == clean | {"dirty": True}
    # Installed below somebody else's clone.
    monkeypatch.setattr(environment, "ROOT", tmp_path / "results")
    assert environment.commit() == {"commit": None, "dirty": None}


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.commit() == {"commit": None, "dirty": None}


@pytest.mark.parametrize(("said", "kept"), [("auto", "COCO_V1"), ("mine.pt", "mine.pt")])
def test_a_run_s_settings_name_the_weights_that_auto_came_to(
    said: str, kept: str, tmp_path: Path
) -> None:
    (tmp_path / ".hydra").mkdir()
    text = f"model:\n  weights: {said}\n  min_size: ${{data.min_size}}\nseed: 3\n"
    (tmp_path / ".hydra/config.yaml").write_text(text)
    record_settings(tmp_path, kept)
    found = (tmp_path / ".hydra/run/config.yaml").read_text()
    assert found == text.replace(said, kept)
