"""What the studies say is what their committed runs say."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from experiments.conditions import make, page, table
from experiments.report.csv_files import read_csv
from experiments.report.markdown import markdown

ROOT = Path(__file__).parents[1]
AXES = ("data.clutter", "data.imbalance", "data.object_size")


def shown(page: Path, source: Path) -> str:
    """What stands in a page below the comment that names a file."""
    _, _, after = page.read_text().partition(f"<!-- {source.relative_to(ROOT).as_posix()} -->\n")
    return after.partition("<!-- end -->")[0]


def test_the_map_is_made_from_its_runs() -> None:
    folder = ROOT / "experiments/imbalance_map"
    source = folder / "conditions.csv"
    found = make(read_csv(source), AXES, "method=random")
    assert (folder / "conditions.md").read_text() == page(found, "conditions.png")
    assert shown(folder / "README.md", source) == markdown(table(found)) + "\n"
