"""Command lines and files that a user types: one line and exit code 1 or 2."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from tiny import SMALL, call, small_network
from wandb_server import wandb_server

from frcnn import check_data, evaluate, predict, train
from frcnn.evaluation.load import Trained
from frcnn.predict import find_images, picture_names

MAINS = {"train": train, "evaluate": evaluate, "predict": predict, "check_data": check_data}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with small_network():
        yield


RETINANET = "model=retinanet_resnet18_fpn"
# Command, its arguments, what its one line says, the exit code.
BAD = [
    ("train", "optimizer.lr=inf", "optimizer.lr: inf is too large", 2),
    ("train", "optimizer.lr=-inf", "optimizer.lr: -inf is too large", 2),
    ("train", "optimizer.lr=nan", "optimizer.lr: expected a number, got nan", 2),
    ("train", "optimizer.lr=1e400", "optimizer.lr: inf is too large", 2),
    ("train", "trainer.epochs=1e400", "trainer.epochs: inf is too large", 2),
    ("train", f"seed={10**30}", f"seed: {10**30} is too large", 2),
    ("train", f"model.min_size=[96,{10**30}]", "model.min_size: 1", 2),
    ("train", "seed=-1", "seed: expected an integer of at least 0, got -1", 2),
    ("train", "seed=", "seed: expected an integer of at least 0, got ''", 2),
    ("train", "seed=yes", "seed: expected an integer of at least 0, got 'yes'", 2),
    ("train", "seed=${nowhere}", "nowhere", 2),
    ("train", "seed=${oc.env:FRCNN_NOT_SET}", "FRCNN_NOT_SET", 2),
    ("train", "seed=${seed}", "Recursive interpolation", 2),
    ("train", "seed=${no_such_resolver:1}", "no_such_resolver", 2),
    ("train", "seed=[", "no viable alternative", 2),
    ("train", "=3", "Config group override must be", 2),
    ("train", "seed", "missing EQUAL", 2),
    ("train", "sampler=", "sampler", 2),
    ("train", "sampler=../loss", "", 2),
    ("train", "data=voc,coco", "", 2),
    ("train", "hydra.run.dir=/dev/null/run", "/dev/null", 1),
    ("train", "+experiment=broken hydra.searchpath=[file://own]", "", 2),
    ("train", "experiment=broken hydra.searchpath=[file://own]", "broken.yaml", 2),
    ("train", "experiment=code hydra.searchpath=[file://own]", "could not determine", 2),
    ("train", "data=voc data.root=none loss.rcnn.per=0", "loss.rcnn.per must be", 2),
    *(
        ("train", f"{RETINANET} model.{key}={value}", f"model.{says or key}: {error}", 2)
        for key, value, says, error in (
            ("anchor_scales", "[]", "", "expected a list of values, each a number above 0"),
            ("anchor_scales", "[0.01]", "", "an anchor of 12 x 0.01 pixels is cut to 0"),
            ("anchor_sizes", "[8,16]", "", "expected 5 sizes, one per level, got 2"),
            ("aspect_ratios", "[0]", "", "expected a list of values, each a number above 0"),
            ("head_depth", "0", "", "expected an integer of at least 1, got 0"),
            ("head_width", "1.5", "", "expected an integer of at least 1 or null, got 1.5"),
            ("first_level", "1", "", "expected an integer between 2 and 5, got 1"),
            ("last_level", "9", "", "expected an integer between 5 and 7, got 9"),
            ("last_level", "6", "anchor_sizes", "expected 4 sizes, one per level, got 5"),
            ("name", "fasterrcnn_resnet18_fpn", "", "'fasterrcnn_resnet18_fpn' is not one of"),
        )
    ),
    ("evaluate", "", "checkpoint is required: add checkpoint=VALUE", 2),
    ("evaluate", "checkpoint=a.pt split=test", "split: expected one of train, val", 2),
    ("evaluate", "checkpoint=a.pt batch_size=0", "batch_size: expected an integer", 2),
    ("evaluate", "checkpoint=5", "5: no such checkpoint", 1),
    ("evaluate", "checkpoint=2024_01_01", "2024_01_01: no such checkpoint", 1),
    ("evaluate", "checkpoint=null", "checkpoint: expected a string, got None", 2),
    ("evaluate", "checkpoint=none.pt", "none.pt: no such checkpoint", 1),
    ("evaluate", "checkpoint=own", "own: not a readable checkpoint", 1),
    ("predict", "checkpoint=a.pt", "input is required: add input=VALUE", 2),
    ("predict", "checkpoint=a.pt input=x.png min_score=2", "min_score: expected a number", 2),
    ("predict", "checkpoint=a.pt input=x.png min_score=nan", "min_score: expected a number", 2),
    ("predict", "checkpoint=a.pt input=x.png min_score={a:2}", "min_score.a: expected a number", 2),
    ("predict", "checkpoint=a.pt input=x.png recursive=2", "recursive: expected true or false", 2),
    ("predict", "checkpoint={a:1} input=x.png", "checkpoint: expected a single value", 2),
    ("predict", "checkpoint=a.pt input=a.png_boxes.png", "no image there", 1),
    ("predict", "checkpoint=a.pt input=none.png", "input=none.png: no image there", 1),
    ("predict", "checkpoint=a.pt input=", "input=: no image there", 1),
    ("predict", "checkpoint=a.pt input='[a'", "no image there", 1),
    ("predict", f"checkpoint=a.pt input={'x' * 5000}", "no image there", 1),
    ("predict", "checkpoint=a.pt input=own", "input=own: no image there", 1),
    ("check_data", "data=voc", "data.root is required", 2),
    ("check_data", "data=voc data.root=none", "cannot be read", 1),
    ("check_data", "data=voc data.root=own/broken.yaml", "cannot be read", 1),
    ("check_data", "data=coco2017 data.root=none", "cannot be read", 1),
    ("check_data", "data.object_size=[40,14]", "object_size", 1),
    ("check_data", "data.num_objects=[3,1]", "num_objects", 1),
    ("check_data", "data.train_images=0", "train_images=0: needs 1 to 1000000", 1),
    ("check_data", "data.class_probabilities=[0,0,0]", "class_probabilities", 1),
    ("check_data", "data.width=0", "data.width: expected an integer between 1 and 4096", 2),
    ("check_data", "data.train_images=10000000", "train_images=10000000: needs 1 to", 1),
    ("check_data", "images=maybe", "images: expected true or false, got 'maybe'", 2),
    ("check_data", "images=false data.clutter=1.5", "data.clutter: expected an integer", 2),
]


@pytest.mark.parametrize(
    ("name", "line", "says", "code"), BAD, ids=[f"{c[0]} {c[1]}"[:60] for c in BAD]
)
def test_a_bad_command_line_ends_in_one_line(
    name: str, line: str, says: str, code: int, folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (folder / "own/experiment").mkdir(parents=True)
    (folder / "own/experiment/broken.yaml").write_text("a: [1\nb: {")
    trap = "!!python/object/apply:os.mkdir [trap]"
    (folder / "own/experiment/code.yaml").write_text(f"# @package _global_\nrun_name: {trap}\n")
    (folder / "own/broken.yaml").touch()
    run = [f"hydra.run.dir={folder}/run"] if name == "train" and "run.dir" not in line else []
    assert call(MAINS[name].main, *run, *line.split()) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert says in error, error
    assert set(os.listdir(folder)) <= {"own", "run"}  # not the trap, nothing half-written
    assert not (folder / "run/checkpoints").exists()


def test_pictures_of_equal_names_keep_their_folder(folder: Path) -> None:
    files = [Path("in/a/x.jpg"), Path("in/b/x.jpg"), Path("in/b/x.png")]
    assert picture_names(files) == ["a/x.jpg_boxes.png", "b/x.jpg_boxes.png", "b/x.png_boxes.png"]
    assert picture_names(files[1:]) == ["x.jpg_boxes.png", "x.png_boxes.png"]
    assert picture_names([Path("../../x.jpg")]) == ["x.jpg_boxes.png"]
    assert picture_names([Path("/a/x.jpg"), Path("../y/x.jpg")])[0] == "a/x.jpg_boxes.png"
    assert not any(".." in name for name in picture_names([Path("../a/x"), Path("b/x")]))


# What predict writes beside the picture of each image.
FOR_ALL_IMAGES = {"predictions.json", "results.json", "images.json", predict.SHEET}


class Blind(torch.nn.Module):
    """Sees one box in every image."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        found = {"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
        return [found] * len(images)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """What predict loads, whatever the checkpoint."""
    device = torch.device("cpu")
    found = Trained(Blind(), {}, ["cat"], [7], device, torch.float32)  # type: ignore[arg-type]
    monkeypatch.setattr("frcnn.evaluation.load.load_trained", lambda *_: found)


def test_predict_on_folders_with_equal_names_overwrites_nothing(
    detector: None, folder: Path
) -> None:
    for name in "ab":
        (folder / f"in/{name}").mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(folder / f"in/{name}/x.jpg")
    assert call(predict.main, "checkpoint=a.pt", "input=in/*/x.jpg", "output=out") == 0
    rows = json.loads((folder / "out/predictions.json").read_text())
    assert [row["picture"] for row in rows] == ["a/x.jpg_boxes.png", "b/x.jpg_boxes.png"]
    assert all((folder / "out" / row["picture"]).is_file() for row in rows)


@pytest.mark.parametrize("odd", ["folder", "pipe", "text", "empty", "dangling"])
def test_predict_goes_on_after_what_is_no_image(
    detector: None, folder: Path, odd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in").mkdir()
    Image.new("RGB", (6, 4)).save(folder / "in/z.png")
    make: dict[str, Any] = {
        "folder": Path.mkdir, "pipe": os.mkfifo, "text": lambda path: path.write_text("x"),
        "empty": Path.touch, "dangling": lambda path: path.symlink_to("nowhere"),
    }  # fmt: skip
    make[odd](folder / "in/a.jpg")
    assert call(predict.main, "checkpoint=a.pt", "input=in", "output=out") == 0
    assert len(json.loads((folder / "out/predictions.json").read_text())) == 1
    error = capsys.readouterr().err
    assert "in/a.jpg: cannot be read as an image" in error or odd == "dangling"


def test_an_output_that_is_a_file_is_one_line(
    detector: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (6, 4)).save(folder / "a.png")
    (folder / "out").touch()
    assert call(predict.main, "checkpoint=a.pt", "input=a.png", "output=out") == 1
    assert "error: out/a.png_boxes.png: cannot be written" in capsys.readouterr().err
    assert (folder / "out").read_bytes() == b""


def test_names_of_any_kind_stay_below_the_output(detector: None, folder: Path) -> None:
    (folder / "in").mkdir()
    names = ["a..png", " .png", "a\nb.png", "-o.png", "${seed}.png", "[x].png", "猫.png"]
    for name in names:
        Image.new("RGB", (6, 4)).save(folder / "in" / name)
    assert len(find_images("in")) == len(names)
    assert call(predict.main, "checkpoint=a.pt", "input=in", "output=out") == 0
    assert set(os.listdir("out")) == {f"{name}_boxes.png" for name in names} | FOR_ALL_IMAGES
    assert set(os.listdir(folder)) == {"in", "out"}


def make_images(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(file)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("input=in", "a.jpg"),
        ("input=in recursive=true", "a.jpg b/c.jpg b/d/e.png"),
        ("input=in/**/*.jpg", "a.jpg b/c.jpg"),
        ("input=in/**", "a.jpg b/c.jpg b/d/e.png"),
        ("input=in/*/*.jpg", "b/c.jpg"),
    ],
)
def test_predict_enters_folders_on_request_and_reads_none_of_its_drawings(
    detector: None, folder: Path, line: str, found: str
) -> None:
    make_images("in/a.jpg", "in/b/c.jpg", "in/b/d/e.png")
    for _ in range(2):
        assert call(predict.main, "checkpoint=a.pt", *line.split(), "output=in") == 0
        rows = json.loads((folder / "in/predictions.json").read_text())
        assert [row["file"] for row in rows] == [f"in/{name}" for name in found.split()]
    assert (folder / "in" / predict.SHEET).exists() == (len(rows) > 1)


def test_predict_writes_coco_results_that_pycocotools_reads(detector: None, folder: Path) -> None:
    make_images("in/a.jpg", "in/b.jpg")
    assert call(predict.main, "checkpoint=a.pt", "input=in", "output=out", "contact_sheet=0") == 0
    index = COCO("out/images.json")
    results = index.loadRes("out/results.json")
    assert index.dataset["categories"] == [{"id": 7, "name": "cat"}]
    assert [index.imgs[number]["file_name"] for number in (0, 1)] == ["in/a.jpg", "in/b.jpg"]
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in results.anns.values()] == [
        (0, 7, [0, 0, 1, 1]),
        (1, 7, [0, 0, 1, 1]),
    ]
    assert not (folder / "out" / predict.SHEET).exists()


@pytest.mark.parametrize(
    ("value", "count"), [("0.8", 1), ("0.95", 0), ("{cat:0.95}", 0), ("{cat:0.8}", 1), ("{}", 1)]
)
def test_the_lowest_score_may_be_one_per_class(detector: None, value: str, count: int) -> None:
    make_images("a.jpg")
    line = ["checkpoint=a.pt", "input=a.jpg", "output=out", f"min_score={value}"]
    assert call(predict.main, *line) == 0
    (row,) = json.loads(Path("out/predictions.json").read_text())
    assert len(row["boxes"]) == count


def test_a_lowest_score_of_an_unknown_class_is_one_line(
    detector: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images("a.jpg")
    line = ["checkpoint=a.pt", "input=a.jpg", "min_score={red cell:0.3}"]
    assert call(predict.main, *line) == 1
    says = "error: min_score: the detector has no class 'red cell'; it has cat\n"
    assert capsys.readouterr().err == says
    scores = predict.lowest_scores({"b": 0.1}, ["a", "b"])
    assert scores == [predict.DEFAULT_SCORE, 0.1]


SECRET = "0123456789abcdef0123456789abcdef01234567"
IN_HEADER = base64.b64encode(f"api:{SECRET}".encode()).decode()


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_the_key_of_wandb_reaches_no_file(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
    else:
        netrc = folder / "netrc"
        netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
    assert_silent(folder, capsys, "wandb.mode=offline")


def assert_silent(folder: Path, capsys: pytest.CaptureFixture[str], *wandb: str) -> str:
    """A run that keeps the key to itself; returns what it said."""
    line = [*SMALL, "trainer.epochs=1", "data.train_images=2", "data.val_images=1"]
    line += [*wandb, "wandb.dir=runs", "hydra.run.dir=runs/a"]
    assert call(train.main, *line) == 0
    written = [file for file in folder.rglob("*") if file.is_file() and file.name != "netrc"]
    assert any(file.suffix == ".wandb" for file in written)
    said = capsys.readouterr()
    assert not [file for file in written if key_in(file.read_bytes())]
    assert not key_in((said.out + said.err).encode())
    return said.out + said.err


def key_in(content: bytes) -> bool:
    """Whether the key stands there, plain or as it is sent."""
    return SECRET.encode() in content or IN_HEADER.encode() in content


def test_online_the_key_is_sent_and_written_nowhere(
    folder: Path, fresh_wandb: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    with wandb_server() as (address, requests):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        assert "going on offline" not in assert_silent(folder, capsys, "wandb.mode=online")
    assert list((folder / "runs/wandb").glob("run-*")) and not (folder / "netrc").exists()
    assert any("file_stream" in path for path, _, _ in requests)
    assert all(IN_HEADER in headers for path, headers, _ in requests if path == "/graphql")
    assert not [path for path, _, body in requests if key_in(path.encode() + body)]


@pytest.mark.slow
def test_online_without_a_server_the_key_is_written_nowhere(
    folder: Path, fresh_wandb: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    with wandb_server() as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
    # The port is closed now.
    assert "going on offline" in assert_silent(folder, capsys, "wandb.mode=online")
