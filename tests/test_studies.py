"""What the studies say is what their committed runs say."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from experiments.conditions.__main__ import page
from experiments.conditions.map import make, means
from experiments.conditions.tables import table
from experiments.report import markdown as report
from experiments.report import statistics
from experiments.report.csv_files import read_csv, read_intervals
from experiments.report.html import CAPTIONS
from experiments.report.markdown import markdown
from experiments.report.statistics import Verdict, in_blocks, verdicts
from experiments.report.study import study
from experiments.report.tables import tables

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
    assert (folder / "conditions.png").exists()
    assert (folder / "conditions.md").read_text() == page(found, "conditions.png")
    assert shown(folder / "README.md", source) == markdown(table(found)) + "\n"


def test_what_the_map_says_of_its_spread_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its README: under either spread, and without the rule for unsteady methods."""
    found = make(read_csv(ROOT / "experiments/imbalance_map/conditions.csv"), AXES, "method=random")

    def told(verdicts: Mapping[str, Verdict]) -> set[str]:
        return {method.removeprefix("method=") for method, v in verdicts.items() if v.told_apart}

    common = {"ohem", "pisa", "hard_negative", "class_weights", "focal"}
    assert told(found.overall) == common and told(found.alone) == {"pisa", "focal"}
    monkeypatch.setattr(statistics, "steady", dict)
    with_all = verdicts(in_blocks(means(found.studies), "method=random"))
    assert told(with_all) == {"ohem", "pisa", "focal", "guided_all"}


def test_the_bccd_study_is_made_from_its_runs() -> None:
    folder = ROOT / "experiments/bccd_samplers"
    source = folder / "runs.csv"
    found = study(read_csv(source))
    images = read_intervals(folder / "images.csv", found.baseline)
    found = replace(found, images=images, family="matched")
    drawn = [name for name in CAPTIONS if (folder / f"{name}.png").exists()]
    assert (folder / "report.md").read_text() == report.page(found, drawn)
    assert shown(folder / "README.md", source) == markdown(tables(found)[0]) + "\n"
