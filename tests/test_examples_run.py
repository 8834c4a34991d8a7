"""The examples that the pages show run as they stand."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny
from torchvision.models.detection import FasterRCNN

from examples import to_torchvision
from frcnn.build import dataset, detector, fill_from_data
from frcnn.evaluation.load import load_trained
from frcnn.runfolder import checkpoint

ROOT = Path(__file__).parents[1]
TERMS = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
FENCE = re.compile(r"```python\n(.*?)```", re.S)


def test_a_loop_of_ones_own_trains() -> None:
    line = [sys.executable, "-m", "examples.own_loop", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert [text.partition(":")[0] for text in printed] == ["step 1", "step 2"]
    for text in printed:
        assert all(name in text for name in TERMS)
        values = [float(value) for value in re.findall(r": (-?[\d.]+|nan|inf)\b", text)]
        assert len(values) == len(TERMS)
        assert all(math.isfinite(value) and value > 0 for value in values)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a ResNet-18 that detects something, though nothing has been learnt."""
    options = ["model.box_score_thresh=0.0", "model.anchor_sizes=[8,16,24,32,48]"]
    config, choices = tiny(*options)
    fill_from_data(config["loss"], dataset(config["data"], "train"), config["model"]["sites"])
    model = detector(config, num_classes=4)
    path = tmp_path_factory.mktemp("saved") / "best.pt"
    content = {"config": config, "choices": choices, "step": 1, "category_ids": [1, 2, 3]}
    content |= {"model": model.state_dict(), "sites": model.sites.state_dict()}
    checkpoint.save(path, content | {"class_names": ["a", "b", "c"]})
    return path


RANDOM = torch.Generator().manual_seed(1)
IMAGES = [torch.rand(3, *size, generator=RANDOM) for size in ((48, 64), (90, 60))]


def of_ours(path: Path) -> list[dict[str, torch.Tensor]]:
    """What the project's own detector finds in each of ``IMAGES``."""
    with torch.inference_mode():
        found = [load_trained(str(path), "cpu", "fp32").detector([image])[0] for image in IMAGES]
    assert all(len(one["scores"]) > 5 for one in found)
    return found


def test_a_checkpoint_in_plain_torchvision(saved: Path) -> None:
    model = to_torchvision.load(str(saved))
    assert type(model) is FasterRCNN
    for image, ours in zip(IMAGES, of_ours(saved), strict=True):
        with torch.inference_mode():
            found = model([image])[0]
        assert torch.equal(found["labels"], ours["labels"])
        for key in ("boxes", "scores"):
            torch.testing.assert_close(found[key], ours[key], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's exporter, which is deprecated
def test_onnx_detects_the_same(saved: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra onnx")
    file = str(tmp_path / "detector.onnx")
    to_torchvision.export(to_torchvision.load(str(saved)), file)
    session = onnxruntime.InferenceSession(file)
    for image, ours in zip(IMAGES, of_ours(saved), strict=True):
        boxes, labels, scores = session.run(None, {"image": image.numpy()})
        assert labels.tolist() == ours["labels"].tolist()
        torch.testing.assert_close(torch.from_numpy(boxes), ours["boxes"], atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(scores), ours["scores"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("page", "example"),
    [("README.md", "own_loop"), ("docs/finetuning.md", "to_torchvision")],
)
def test_a_page_shows_lines_of_the_example(page: str, example: str) -> None:
    (shown,) = FENCE.findall((ROOT / page).read_text())
    lines = (ROOT / f"examples/{example}.py").read_text().splitlines()
    known = {line.strip() for line in lines}
    for line in shown.splitlines():
        assert line.strip() in known, line
