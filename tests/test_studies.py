"""What the studies say is what their committed runs say."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from experiments.conditions import make, page
from experiments.report.csv_files import read_csv

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
AXES = ("data.clutter", "data.imbalance", "data.object_size")


def test_the_map_is_made_from_its_runs() -> None:
    folder = EXPERIMENTS / "imbalance_map"
    found = make(read_csv(folder / "conditions.csv"), AXES, "method=random")
    assert (folder / "conditions.md").read_text() == page(found, "conditions.png")
