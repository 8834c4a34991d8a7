"""Drawn pictures: the right pixels have the right colour, and nothing else happens."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from frcnn.evaluation import text
from frcnn.evaluation.drawing import (
    MIN_SIDE,
    PALETTE,
    TILE,
    class_colour,
    contact_sheet,
    draw_boxes,
    thumbnail,
)
from frcnn.evaluation.text import fitted

NAMES = ["cell", "plate"]
GREY = 77


def image(height=480, width=640):
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def array(picture):
    return np.asarray(picture).astype(int)


def test_edges_have_the_class_colour_and_the_rest_is_the_image():
    boxes = torch.tensor([[100.0, 200, 160, 260], [300, 300, 420, 460]])
    drawn = array(draw_boxes(image(), boxes, torch.tensor([1, 2]), None, NAMES))
    for (left, top, right, bottom), label in zip(boxes.int().tolist(), (1, 2), strict=True):
        colour = class_colour(label)
        # x in [left, right) is inside the box: its last column is right - 1
        for x in (left, left + 1, right - 1):
            assert (drawn[top:bottom, x] == colour).all()
        for y in (top, bottom - 1):
            assert (drawn[y, left:right] == colour).all()
        assert (drawn[top + 5 : bottom - 5, left + 5 : right - 5] == GREY).all()
        assert (drawn[top:bottom, right] == GREY).all()
        assert (drawn[bottom, left:right] == GREY).all()
    # a filled plate with the text above the box
    plate = drawn[186:199, 101:120].reshape(-1, 3)
    assert (plate == class_colour(1)).all(axis=1).mean() > 0.3
    assert not (plate == class_colour(1)).all()


def test_small_image_is_enlarged_and_boxes_with_it():
    drawn = draw_boxes(image(48, 64), torch.tensor([[10.0, 20, 30, 40]]), [2], None, NAMES)
    assert drawn.size == (MIN_SIDE, 480)
    assert (array(drawn)[200:400, [100, 299]] == class_colour(2)).all()
    large = draw_boxes(image(100, 1000), torch.zeros(0, 4), [], None, NAMES)
    assert large.size == (1000, 100)


@pytest.mark.parametrize("empty", [torch.zeros(0, 4), torch.zeros(0)])
def test_no_boxes_is_the_image(empty):
    drawn = draw_boxes(image(), empty, torch.zeros(0, dtype=torch.int64), torch.zeros(0), NAMES)
    assert (array(drawn) == GREY).all()


@pytest.mark.parametrize("mode", ["tensor", "RGB", "L", "P"])
def test_input_is_not_modified(mode):
    original = image() if mode == "tensor" else Image.new("RGB", (640, 480), "red").convert(mode)
    before = original.clone() if mode == "tensor" else original.copy()
    boxes, scores = torch.tensor([[10.0, 20, 300, 400]]), torch.tensor([0.5])
    boxes_before = boxes.clone()
    drawn = draw_boxes(original, boxes, torch.tensor([1]), scores, NAMES)
    assert drawn.mode == "RGB" and drawn is not original
    assert (np.asarray(original) == np.asarray(before)).all()
    assert torch.equal(boxes, boxes_before)


def test_best_score_is_on_top_and_low_ones_are_left_out():
    boxes = torch.tensor([[100.0, 100, 200, 200], [100.0, 100, 200, 200], [300.0, 300, 400, 400]])
    labels, scores = torch.tensor([1, 2, 1]), torch.tensor([0.9, 0.6, 0.2])
    drawn = array(draw_boxes(image(), boxes, labels, scores, NAMES, min_score=0.5))
    assert (drawn[100:200, 199] == class_colour(1)).all()
    assert (drawn[280:480, 250:450] == GREY).all()


def test_texts_of_equal_boxes_do_not_cover_each_other():
    boxes = torch.tensor([[100.0, 100, 300, 300]]).repeat(2, 1)
    drawn = array(draw_boxes(image(), boxes, [1, 2], torch.tensor([0.9, 0.8]), NAMES))
    above, below = drawn[86:99, 101:140], drawn[301:314, 101:140]
    assert (above == class_colour(1)).all(axis=2).mean() > 0.3
    assert (below == class_colour(2)).all(axis=2).mean() > 0.3


def test_text_stays_in_the_picture():
    drawn = array(
        draw_boxes(image(), torch.tensor([[620.0, 0, 640, 5]]), [1], None, ["a long name"])
    )
    plate = (drawn[12] == class_colour(1)).all(axis=1)
    # wider than its box, so it begins left of it and ends with the picture
    assert plate[639] and plate[585:620].sum() > 10 and not plate[:500].any()


@pytest.mark.parametrize("name", ["long " * 60, "x" * 100, "круг " * 30])
def test_a_long_name_is_cut_and_keeps_its_score(name):
    text, font = fitted(name, " 0.87", 12, 300)
    assert text.startswith(name[:20]) and text.endswith("... 0.87")
    assert 250 < font.getlength(text) <= 300
    box, score = torch.tensor([[620.0, 0, 640, 5]]), torch.tensor([0.87])
    plate = (array(draw_boxes(image(), box, [1], score, [name]))[1] == class_colour(1)).all(axis=1)
    assert plate[600] and plate[639]


@pytest.fixture
def fonts(monkeypatch):
    """Which font files there are, beside Pillow's own."""

    def set_fonts(*names):
        monkeypatch.setattr(text, "FONTS", names)
        for function in (text._found_font, text._load, text.drawable_names):
            function.cache_clear()

    yield set_fonts
    monkeypatch.undo()
    set_fonts(*text.FONTS)


# matplotlib's own font, for characters that Pillow's lacks.
DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@pytest.mark.parametrize("name", ["круг", "ąęł", "عين", "10 €", "α/β"])
def test_a_name_is_drawn_with_a_font_that_has_it(fonts, caplog, name):
    fonts("no such font.ttf", str(DEJAVU))
    assert text.drawable_names(("cell", name)) == ("cell", name)
    assert text.font_for(name, 12).getname()[0] == "DejaVu Sans"
    assert text.font_for("cell", 12).getname() == ImageFont.load_default(size=12).getname()
    assert not caplog.records


def test_a_name_that_no_font_has_is_a_number_with_one_line(fonts, caplog):
    fonts(str(DEJAVU))
    names = ["cell", "\u732b", "\u72ac"]  # cat and dog in Chinese
    box, score = torch.tensor([[100.0, 100, 200, 200]]), torch.tensor([0.5])
    for _ in range(2):
        drawn = draw_boxes(image(), box, [2], score, names)
    assert (array(drawn) == array(draw_boxes(image(), box, [2], score, ["cell", "2"]))).all()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("of 2 class names; pictures show numbers: 2 = \u732b, 3 = \u72ac")


def test_a_contact_sheet_shows_each_picture_and_its_name():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    small = [thumbnail(Image.new("RGB", (900, 300), c), "a\nfolder/" * 9) for c in colours]
    sheet = contact_sheet(small)
    width, height = small[0].size
    assert sheet.size == (2 * width, 2 * height)
    for number, colour in enumerate(colours):
        x, y = number % 2 * width, number // 2 * height
        assert sheet.getpixel((x + TILE // 2, y + TILE // 2)) == colour
        caption = array(sheet.crop((x, y + TILE, x + width, y + height)))
        assert 0 < (caption < 128).mean() < 0.5
    assert (array(sheet)[height:, width:] == 255).all()


def test_broken_boxes_are_clipped_or_left_out():
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[nan, 0, 90, 90], [0, 0, inf, 90], [-50, 200, 1e30, 300]])
    drawn = array(draw_boxes(image(), boxes, [1, 1, 2], torch.ones(3), NAMES))
    assert (drawn[:180] == GREY).all()
    assert (drawn[200:300, [0, 639]] == class_colour(2)).all()
    # no area, or its corners exchanged, or beyond the picture: a dot or line, not an error
    flat = torch.tensor([[5.0, 5, 5, 5], [50, 50, 40, 40], [700, 500, 900, 600]])
    assert (array(draw_boxes(image(), flat, [2] * 3, None, NAMES))[479, 639] == PALETTE[1]).all()


def test_palette_differs_and_repeats():
    assert len(set(PALETTE)) == len(PALETTE)
    assert class_colour(1) == class_colour(1 + len(PALETTE)) == PALETTE[0]
