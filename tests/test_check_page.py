"""The page of ``frcnn.check_data``: what it says and draws of a folder with known faults."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import call, small_network

from frcnn.check_data import main, suggested
from frcnn.data import voc
from frcnn.data.folds import pool
from frcnn.data.problems import Mark
from frcnn.survey.page import shortly
from frcnn.survey.pictures import BORDER, LONGEST, flawed

SIZE = "<size><width>40</width><height>30</height></size>"


def save(root: Path, split: str, id: str, *boxes: list[int]) -> None:
    """A grey image of 40x30 with cats, in a split of a VOC folder."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    # Noise, so that no file is a copy of another one.
    noise = np.random.default_rng(list(id.encode())).integers(256, size=(30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / f"JPEGImages/{id}.jpg")
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = ""
    for box in boxes:
        tags = "".join(f"<{side}>{x}</{side}>" for side, x in zip(sides, box, strict=True))
        objects += f"<object><name>cat</name><bndbox>{tags}</bndbox></object>"
    (root / f"Annotations/{id}.xml").write_text(f"<annotation>{SIZE}{objects}</annotation>")
    with open(root / f"ImageSets/Main/{split}.txt", "a") as file:
        file.write(f"{id}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Training: a is in order, b has a clipped box and one outside, c has a box twice."""
    root = tmp_path / "set"
    save(root, "train", "a", [1, 1, 20, 20])
    save(root, "train", "b", [31, 11, 50, 20], [61, 1, 70, 9], [5, 5, 20, 20])
    save(root, "train", "c", [11, 11, 20, 20], [11, 11, 20, 20])
    save(root, "val", "d", [1, 1, 20, 20])
    Image.new("RGB", (8, 8)).save(root / "JPEGImages/left over.jpg")
    return root


CLIPPED, TWICE = "boxes clipped to the image", "boxes annotated twice"


def test_marks_are_the_boxes_as_annotated(root: Path) -> None:
    assert voc("train", root).problems.marks == [
        Mark("boxes outside the image", "b.xml object 2", "b.jpg", (60, 0, 70, 9)),
        Mark(CLIPPED, "b.xml object 1", "b.jpg", (30, 10, 50, 20)),
        Mark(TWICE, "c.xml object 2, as c.xml object 1", "c.jpg", (10, 10, 20, 20)),
    ]


def test_pooled_marks_follow_their_files(root: Path, tmp_path: Path) -> None:
    save(tmp_path / "more", "train", "e", [31, 11, 50, 20])
    data = pool([voc("train", root), voc("train", tmp_path / "more"), voc("train", root)])
    assert [mark.file for mark in data.problems.marks] == [
        "set/JPEGImages/b.jpg", "set/JPEGImages/b.jpg", "set/JPEGImages/c.jpg",
        "more/JPEGImages/e.jpg",
    ]  # fmt: skip


def test_the_worst_image_is_drawn_first_with_a_border_around_it(root: Path) -> None:
    data = voc("train", root)
    shown = list(flawed(data, 9))
    assert [text for _, text in shown] == [
        f"b.jpg: 1 boxes outside the image (b.xml object 2); 1 {CLIPPED} (b.xml object 1)",
        f"c.jpg: 1 {TWICE} (c.xml object 2, as c.xml object 1)",
    ]
    border = int(np.ceil(BORDER * 40))
    sizes = [picture.size for picture, _ in shown]
    assert sizes == [(LONGEST, round(LONGEST * (30 + 2 * border) / (40 + 2 * border))), (720, 540)]
    assert len(list(flawed(data, 1))) == 1
    (root / "JPEGImages/b.jpg").write_bytes(b"")  # what cannot be read is left out
    assert [text[:5] for _, text in flawed(data, 1)] == ["c.jpg"]


def page_of(root: Path, *options: str, code: int = 0) -> str:
    """The page that the command writes."""
    file = root.parent / "page/check.html"
    with small_network():
        assert call(main, "data=voc", f"data.root={root}", f"page={file}", *options) == code
    return file.read_text()


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of a table."""
    body = text.split(f"<h2>{title}</h2>")[1].split("</table>")[0]
    return [re.findall(r">([^<>]+)<", row) for row in re.findall("<tr>.*?</tr>", body)[1:]]


def test_the_page_counts_names_and_draws(root: Path) -> None:
    text = page_of(root)
    assert rows(text, "Splits") == [
        ["train", "3", "0", "5", "0", "3"],
        ["val", "1", "0", "1", "0", "0"],
    ]
    assert ["boxes outside the image", "train", "dropped", "1", "b.xml object 2"] in rows(
        text, "Problems"
    )
    assert rows(text, "Classes by split") == [["cat", "5", "1", "100.0%", "100.0%"]]
    assert "Image files in neither split: 1" in text and "left over.jpg" in text
    assert "The worst images of train" in text and "The worst images of val" not in text
    assert "A training run would end" not in text
    # two worst images, and the worst covered object of each image
    assert text.count("<figure>") == 2 + 3
    assert "http" not in text and "<script src" not in text and "<link" not in text


def test_the_page_is_written_where_a_run_would_end(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "JPEGImages/c.jpg"
    file.write_bytes(file.read_bytes().replace(b"\xff\xdb", b"\xff\xfe"))  # it cannot be decoded
    text = page_of(root, code=1)
    assert "A training run would end" in text and "1 images cannot be decoded" in text
    assert text.count("<figure>") == 1 + 2  # c cannot be drawn
    assert "A training run would end" not in page_of(root, "images=false")


def test_a_page_that_cannot_be_written_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_network():
        assert call(main, "data=voc", f"data.root={root}", f"page={root}") == 1
    assert "error: " in capsys.readouterr().err


def test_of_many_places_the_first_are_shown() -> None:
    assert shortly(["a", "b"]) == "a; b"
    assert shortly([str(n) for n in range(9)]) == "0; 1; 2; 3; 4; ..."


def test_suggestions_are_keys_of_the_data() -> None:
    class Setting:
        def __init__(self, override: str) -> None:
            self.override = override

    found = ["", "model.anchor_sizes=[8,16]", "model.min_size=96 model.max_size=128",
             "model.min_size=96 model.max_size=128 model.anchor_sizes=[8,16]"]  # fmt: skip
    assert suggested([Setting(text) for text in found], ["No `x`."]) == [  # type: ignore[misc]
        "At the present image size: data.anchor_sizes=[8,16]",
        "At the smallest image size that is worth a trial: data.min_size=96 data.max_size=128 "
        "data.anchor_sizes=[8,16]",
        "No x.",
    ]
