"""The study of experiments/finetuning: what its sweep runs, and its table."""

import json
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from tiny import SMALL, call, small_network

from experiments.finetuning.__main__ import NAMES, difference, main, scored
from frcnn import evaluate, train
from frcnn.config.compose import CONF

OWN = Path(__file__).parents[1] / "experiments/finetuning/conf"
SETS = ("bccd", "cards", "chess", "raccoon")


def composed(name: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        own = f"hydra.searchpath=[file://{OWN}]"
        found = hydra.compose("train", [own, "sweep=finetuning", f"+set={name}"])
    plain = OmegaConf.to_container(found, resolve=True)
    assert isinstance(plain, dict)
    return plain


def test_the_sets_differ_in_the_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE0", "weights.pth")
    assert sorted(file.stem for file in (OWN / "set").glob("*.yaml")) == list(SETS)
    runs = {name: composed(name) for name in SETS}
    for name, run in runs.items():
        data = run.pop("data")
        size = (256, 384) if name == "chess" else (192, 256)
        assert (data["min_size"], data["max_size"]) == size
        assert (run["model"].pop("min_size"), run["model"].pop("max_size")) == size
        assert data["root"] == f"data/{name}"
        assert run["trainer"]["max_steps"] == 400
        assert run["model"]["weights_backbone"] == "weights.pth"
        assert run == runs["bccd"], name


def test_the_table_is_that_of_plain_pycocotools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs/small"
    with small_network():
        line = ["trainer.max_steps=20", f"hydra.run.dir={run}", "model.box_score_thresh=0.0"]
        assert call(train.main, *SMALL, *line) == 0
        assert call(evaluate.main, f"checkpoint={run}/checkpoints/last.pt") == 0
    folder = run / "evaluation/last_val"
    own = json.loads((folder / "metrics.json").read_text())
    plain = scored(folder)
    assert own["AP"] > 0
    for name in NAMES:
        assert plain[name] == pytest.approx(-1 if own[name] is None else own[name], abs=1e-12)
    page = tmp_path / "page.md"
    page.write_text("<!-- experiments/finetuning/results.csv -->\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "runs"), "--page", str(page)])
    main()
    images = len(json.loads((folder / "ground_truth.json").read_text())["images"])
    assert f"| small | {images} | 3 |" in page.read_text()
    assert (tmp_path / "results.csv").read_text().splitlines()[1].startswith(f"small,{images},3,")
    (folder / "metrics.json").write_text(json.dumps(own | {"AR1": own["AR1"] + 0.01}))
    assert difference(folder) == pytest.approx(0.01)
    with pytest.raises(SystemExit, match="pycocotools finds other numbers in .*last_val"):
        main()


def test_without_an_evaluation_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path)])
    with pytest.raises(SystemExit, match="no run is evaluated; call frcnn.evaluate"):
        main()
