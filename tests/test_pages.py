"""The code that docs/ shows is written out and run as it stands."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny import SMALL, call, lines, options, small_network

from frcnn import evaluate, train
from frcnn.config.methods import GROUPS

ROOT = Path(__file__).parents[1]
PAGES = ("docs/extending.md", "docs/data.md")
SHOWN = re.compile(r"```(?:python|yaml)\n# (my(?:package|conf)/\S+)\n(.*?)```", re.S)
FENCE = re.compile(r"```.*?```", re.S)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(r"`((?:\w+/)*\w+\.py)(?:::(\w+))?`")
METHODS = {
    "sampler": "near_threshold",
    "loss": "smoothed",
    "box_loss": "log_cosh",
    "assigner": "ignore_small",
    "weigher": "uncertainty",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``mypackage`` and ``myconf`` of the pages, on Python's path."""
    folder = tmp_path_factory.mktemp("pages")
    for page in PAGES:
        for name, text in SHOWN.findall((ROOT / page).read_text()):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    (folder / "mypackage/__init__.py").touch()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    with small_network():
        yield folder
    sys.path.remove(str(folder))


def run(written: Path, folder: Path, *chosen: str) -> dict[str, float]:
    """The first record of a run of two steps."""
    line = ["--config-dir", str(written / "myconf"), *chosen, "trainer.max_steps=2"]
    assert call(train.main, *line, f"hydra.run.dir={folder}") == 0
    return next(record for record in lines(folder) if "train/loss" in record)


def chosen(folder: Path) -> dict[str, str]:
    return json.loads((folder / "summary.json").read_text())["choices"]


def test_methods_run_together(written: Path, tmp_path: Path) -> None:
    methods = [f"{group}={name}" for group, name in METHODS.items()]
    record = run(written, tmp_path, *SMALL, *methods)
    assert "train/loss_rcnn_s" in record
    assert chosen(tmp_path)["sampler/rcnn"] == "near_threshold"
    assert chosen(tmp_path)["assigner/rpn"] == "ignore_small"
    line = [f"checkpoint={tmp_path}/checkpoints/last.pt", "device=cpu", "workers=0"]
    assert call(evaluate.main, *line, f"output={tmp_path}/e") == 1
    assert call(evaluate.main, *line, f"output={tmp_path}/e", "trust=[mypackage]") == 0


def test_a_value_out_of_range_is_named(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--config-dir", str(written / "myconf"), *SMALL, "sampler=near_threshold"]
    folder = f"hydra.run.dir={tmp_path}"
    assert call(train.main, *line, "sampler.rcnn.iou=2", folder) == 2
    assert "sampler.rcnn.iou must be in [0, 1], got 2" in capsys.readouterr().err


def test_a_backbone(written: Path, tmp_path: Path) -> None:
    assert run(written, tmp_path, *SMALL, "model=plain")["train/loss"] > 0


def test_a_second_head(written: Path, tmp_path: Path) -> None:
    line = ["model=two_heads", "sampler/second=ohem", "site.second.budget=8"]
    assert "train/loss_classifier_second" in run(written, tmp_path, *SMALL, *line)


def test_a_reader(written: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        rows = [f"{split}{n}.png,10,5,40,30,{name}" for n, name in enumerate(["cat", "dog", "cow"])]
        text = "\n".join(["file,x1,y1,x2,y2,class", *rows]) + "\n"
        (tmp_path / f"{split}.csv").write_text(text)
        for n in range(3):
            Image.new("RGB", (64, 48)).save(tmp_path / f"{split}{n}.png")
    small = [option for option in SMALL if not option.startswith("data.")]
    small += ["data=boxes_csv", f"data.root={tmp_path}", "data.classes=[cat,dog]"]
    small += ["data.min_size=48", "data.max_size=64"]
    assert run(written, tmp_path / "run", *small)["train/loss"] > 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["per_class"].keys() == {"cat", "dog"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_links_lead_somewhere(page: str) -> None:
    place = ROOT / page
    for file in sorted(place.glob("*.md")) if place.is_dir() else [place]:
        for target in LINK.findall(file.read_text()):
            assert "://" in target or (file.parent / target).exists(), f"{file.name}: {target}"


PAGE_FILES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/*.md")])
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)
RULE = re.compile(r"\|(?::?-+:?\|)+")


@pytest.mark.parametrize("file", PAGE_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_tables_are_whole(file: Path) -> None:
    """Each has a head, a rule and rows of as many cells; an empty line would cut it in two."""
    for table in TABLE.findall(FENCE.sub("", file.read_text() + "\n")):
        rows = [re.sub(r"`[^`]*`", "", row).replace("\\|", "") for row in table.splitlines()]
        assert len(rows) > 1 and RULE.fullmatch(rows[1].replace(" ", "")), rows[0]
        assert len({row.count("|") for row in rows}) == 1, rows[0]


@pytest.mark.parametrize("page", ["methods", "reliability"])
def test_the_tests_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    for name, function in NAMED.findall(text):
        found = [file for file in (ROOT / "tests").rglob("*.py") if str(file).endswith(f"/{name}")]
        assert found, name
        assert f"def {function}" in "".join(file.read_text() for file in found), function


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_is_described(group: str) -> None:
    page = (ROOT / "docs/methods.md").read_text()
    names = {*options(group), *options(f"{group}/rcnn")}
    assert not [name for name in names if not re.search(rf"[`=]{name}`", page)]
