"""The tables of the README and of the studies are made from their committed CSV files."""

import json
import re
from pathlib import Path

import pytest

from experiments.benchmark.report import headlines
from experiments.benchmark.report import page as benchmark_page
from experiments.table import markdown, put, read, row

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"<!-- (experiments/\S+\.(?:csv|json)) -->\n(.*?)<!-- end -->", re.S)
# Those of the studies, whose tables compare, are in test_studies.py.
STUDIES = ("conditions.csv", "runs.csv", "images.csv")
PAGES = [
    page
    for page in sorted(ROOT.glob("experiments/*/README.md"))
    if any(file.name not in STUDIES for file in page.parent.glob("*.csv"))
]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"])
def test_a_pages_tables_are_those_of_its_csv(page: Path) -> None:
    places = PLACE.findall(page.read_text())
    assert places, f"{page} shows no table"
    for source, table in places:
        file = ROOT / source
        is_benchmark = file.suffix == ".json"
        expected = headlines(json.loads(file.read_text())) if is_benchmark else markdown(read(file))
        assert table == expected


@pytest.mark.parametrize("file", sorted(ROOT.glob("experiments/benchmarks/*.json")))
def test_a_benchmarks_page_is_that_of_its_figures(file: Path) -> None:
    assert file.with_suffix(".md").read_text() == benchmark_page(json.loads(file.read_text()))


def test_a_run_that_did_not_end_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "status.json").write_text('{"status": "FAILED", "overrides": []}')
    with pytest.raises(SystemExit, match="FAILED"):
        row(tmp_path)


def test_a_row_tells_command_and_figures(tmp_path: Path) -> None:
    classes = {"cat": {"AP": 0.5, "AP50": 0.9}}
    figures = {"AP": 0.12345, "AP50": 0.5, "AP75": 0.25, "per_class": classes}
    (tmp_path / "summary.json").write_text(json.dumps({**figures, "steps": 7, "seed": 3}))
    overrides = ["sampler=ohem", "run_name=x", "data.root=/d"]
    status = {"status": "COMPLETED", "overrides": overrides}
    (tmp_path / "status.json").write_text(json.dumps(status))
    made = row(tmp_path)
    assert made["command"] == "python -m frcnn.train sampler=ohem"
    assert (made["AP"], made["AP cat"]) == ("0.1235", "0.5000")
    assert (
        markdown([made])
        .splitlines()[2]
        .startswith("| `python -m frcnn.train sampler=ohem` | 12.3 | 50.0 | 25.0 | 50.0 | 7 | 3 |")
    )


@pytest.mark.parametrize("before", ["", "| old |\n"])
def test_a_table_takes_its_own_place_alone(tmp_path: Path, before: str) -> None:
    page = tmp_path / "page.md"
    other = "\n<!-- b.csv -->\n| b |\n<!-- end -->\n"
    page.write_text(f"<!-- a.csv -->\n{before}<!-- end -->\n{other}")
    put("| new |\n", "a.csv", page)
    assert page.read_text() == f"<!-- a.csv -->\n| new |\n<!-- end -->\n{other}"
    with pytest.raises(SystemExit, match="no place for c.csv"):
        put("", "c.csv", page)
