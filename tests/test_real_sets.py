"""From the folder to a trained detector in two commands, on real data sets and on a YOLO copy."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import call, small_network

from frcnn import check_data, train
from frcnn.data import DetectionDataset, voc, yolo

SETS = Path(__file__).resolve().parents[2] / "shared/data"
# Options of both commands, and the numbers of images and classes.
COMMANDS = {
    "bccd": (["data=bccd"], (292, 72, 3)),
    "cards": (["data=voc", "data.train_split=train", "data.val_split=test"], (296, 67, 6)),
    "raccoon": (["data=voc", "data.train_split=train", "data.val_split=test"], (160, 40, 1)),
    "chess": (["data=roboflow"], (202, 58, 13)),
}
SHORT = ["trainer.max_steps=2", "trainer.batch_size=2", "trainer.workers=0", "trainer.device=cpu",
         "trainer.precision=fp32", "wandb.mode=disabled", "trainer.num_pictures=0",
         "data.min_size=48", "data.max_size=64"]  # fmt: skip


def folder_of(name: str) -> Path:
    """The folder of a real data set, or skip where it is absent."""
    if not (SETS / name).is_dir():
        pytest.skip(f"{name} is not beside the project")
    return SETS / name


def trains(options: list[str], tmp_path: Path) -> dict[str, float]:
    """Check a data set and train on it; the summary of the run."""
    page, run = tmp_path / "page.html", tmp_path / "run"
    with small_network():
        assert call(check_data.main, *options, "images=false", f"page={page}") == 0
        assert call(train.main, *options, *SHORT, f"hydra.run.dir={run}") == 0
    assert "The worst covered objects" in page.read_text()
    return json.loads((run / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_two_commands(name: str, tmp_path: Path) -> None:
    options, (images, val, classes) = COMMANDS[name]
    root = folder_of(name)
    summary = trains([*options, f"data.root={root}"], tmp_path)
    assert summary["steps"] == 2
    page = (tmp_path / "page.html").read_text()
    assert f"<code>train</code></td><td>{images}</td>" in page
    assert f"<code>val</code></td><td>{val}</td>" in page
    assert f"Classes: {classes}." in page


def yolo_copy(data: dict[str, DetectionDataset], root: Path) -> None:
    """Write splits as a YOLO data set: images as links, and a text file each."""
    names = data["train"].class_names
    root.mkdir()
    lines = [f"{split}: images/{split}" for split in data]
    (root / "data.yaml").write_text("\n".join([*lines, f"names: {names}", ""]))
    for split, images in data.items():
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
        for row in range(len(images)):
            source = images.load.path(row)  # type: ignore[attr-defined]
            (root / "images" / split / source.name).symlink_to(source)
            target = images._target(row, 0)
            size = np.array([images.widths[row], images.heights[row]], dtype=float)
            low, high = target["boxes"].double().numpy().reshape(-1, 2, 2).transpose(1, 0, 2)
            rows = np.concatenate([(low + high) / 2 / size, (high - low) / size], axis=1)
            text = "".join(
                f"{label - 1} {' '.join(f'{x:.8f}' for x in box)}\n"
                for label, box in zip(target["labels"].tolist(), rows.tolist(), strict=True)
            )
            (root / "labels" / split / source.with_suffix(".txt").name).write_text(text)


def test_a_yolo_copy_of_cards_is_cards(tmp_path: Path) -> None:
    root = folder_of("cards")
    data = {split: voc(split, root, "train", "test") for split in ("train", "val")}
    yolo_copy(data, tmp_path / "set")
    for split, images in data.items():
        copy = yolo(split, tmp_path / "set")
        assert copy.class_names == images.class_names
        order = np.argsort([Path(file).name for file in images.files.tolist()], kind="stable")
        names = [Path(file).name for file in copy.files.tolist()]
        assert names == [images.files[row] for row in order]
        for row, other in enumerate(order.tolist()):
            own, theirs = copy._target(row, 0), images._target(other, 0)
            assert own["labels"].tolist() == theirs["labels"].tolist()
            np.testing.assert_allclose(own["boxes"], theirs["boxes"], atol=1e-3)


@pytest.mark.slow
def test_two_commands_on_a_yolo_copy_of_cards(tmp_path: Path) -> None:
    root = folder_of("cards")
    yolo_copy({s: voc(s, root, "train", "test") for s in ("train", "val")}, tmp_path / "set")
    summary = trains(["data=yolo", f"data.root={tmp_path / 'set'}"], tmp_path)
    assert summary["steps"] == 2
