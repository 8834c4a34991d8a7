"""Scores against AP: which numbers are at which validation, and that runs are found."""

import json
import sys
from pathlib import Path

import pytest
from fabricated import fabricate

from experiments.figures.training import main, points, scores_and_ap

ONE = "sampling/dense/best_is_best"
RECORDS = [
    {"step": 1, ONE: 0.25, "sampling/dense/positive_iou": 0.5},
    {"step": 3, ONE: 0.75},
    {"step": 4, "epoch": 1, "val/AP": 0.125},
    {"step": 8, "epoch": 2, "val/AP": 0.25},
    {"step": 9, ONE: 1.0},
    {"step": 12, "epoch": 3, "val/AP": 0.5},
    {"step": 13, ONE: 0.0},
]


def test_a_number_is_its_mean_since_the_validation_before() -> None:
    """A validation without records since the one before has no point."""
    assert points(RECORDS) == {ONE: [(0.5, 12.5), (1.0, 50.0)]}


def test_each_run_is_a_line_of_its_methods_colour() -> None:
    found = points(RECORDS)
    figure = scores_and_ap({"sampler=all": [found, found], "sampler=ohem": [found]})
    assert [axes.get_title() for axes in figure.axes] == ["dense"] * 4
    drawn = [line for line in figure.axes[3].lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in drawn] == [[0.5, 1.0]] * 3
    assert len({line.get_color() for line in drawn}) == 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["sampler=all", "sampler=ohem"]


def test_the_command_draws_the_runs_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", str(tmp_path)])
    run = fabricate(tmp_path / "one", "sampler=ohem")
    with pytest.raises(SystemExit, match="no run with a validation and records"):
        main()
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    main()
    (picture,) = capsys.readouterr().out.split()
    assert Path(picture) == tmp_path / "report/scores_and_ap.png" and Path(picture).stat().st_size
