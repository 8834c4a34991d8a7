"""The tables of the README and of the studies are made from their committed CSV files."""

import json
import re
import sys
from pathlib import Path

import pytest

from experiments.benchmark.report import headlines
from experiments.benchmark.report import page as benchmark_page
from experiments.table import main, markdown, put, read, row, write

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"<!-- (experiments/\S+\.(?:csv|json)) -->\n(.*?)<!-- end -->", re.S)
# Those of the studies, whose tables compare, are in test_studies.py.
STUDIES = ["conditions.csv", "runs.csv", "images.csv", "wrong_labels.csv", "legends.csv"]
WHICH = ("length", "settings", "tuning", "test", "scale", "quota", "weights")
STUDIES += [f"{part}.csv" for part in WHICH]
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


def finished(
    folder: Path, overrides: list[str], ap: float | None = 0.12345, **aps: float | None
) -> Path:
    """The folder of a run with this AP and these by class."""
    classes = {name: {"AP": ap, "AP50": ap} for name, ap in aps.items()}
    figures = {"AP": ap, "AP50": 0.5, "AP75": 0.25, "per_class": classes}
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({**figures, "steps": 7, "seed": 3}))
    status = {"status": "COMPLETED", "overrides": overrides}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def test_a_row_tells_command_and_figures(tmp_path: Path) -> None:
    made = row(finished(tmp_path, ["sampler=ohem", "run_name=x", "data.root=/d"], cat=0.5))
    assert made["command"] == "python -m frcnn.train sampler=ohem"
    assert (made["AP"], made["AP cat"]) == ("0.1235", "0.5000")
    assert (
        markdown([made])
        .splitlines()[2]
        .startswith("| `python -m frcnn.train sampler=ohem` | 12.3 | 50.0 | 25.0 | 50.0 | 7 | 3 |")
    )


def test_runs_without_an_object_or_a_class_have_dashes(tmp_path: Path) -> None:
    runs = {
        "a": {"cat": 0.5, "dog": None},
        "b": {"cat": 0.25, "cow": 0.75},
        "c": {"cow": None, "ap": None},
    }
    file = tmp_path / "results.csv"
    write(file, [row(finished(tmp_path / name, [], **aps)) for name, aps in runs.items()])
    assert file.read_text().splitlines() == [
        "command,AP,AP50,AP75,AP cat,AP dog,steps,seed,AP cow",
        "python -m frcnn.train,0.1235,0.5000,0.2500,0.5000,,7,3,",
        "python -m frcnn.train,0.1235,0.5000,0.2500,0.2500,,7,3,0.7500",
        "python -m frcnn.train,,0.5000,0.2500,,,7,3,",
    ]
    assert markdown(read(file)).splitlines()[2:] == [
        "| `python -m frcnn.train` | 12.3 | 50.0 | 25.0 | 50.0 | – | 7 | 3 | – |",
        "| `python -m frcnn.train` | 12.3 | 50.0 | 25.0 | 25.0 | – | 7 | 3 | 75.0 |",
        "| `python -m frcnn.train` | – | 50.0 | 25.0 | – | – | 7 | 3 | – |",
    ]


def test_a_command_can_be_typed_and_splits_no_cell(tmp_path: Path) -> None:
    made = row(finished(tmp_path, ["data.classes=[a|b,c d]"]))
    assert made["command"] == "python -m frcnn.train 'data.classes=[a|b,c d]'"
    assert r"| `python -m frcnn.train 'data.classes=[a\|b,c d]'` |" in markdown([made])


def test_rows_are_added_to_those_of_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.csv"
    write(file, [row(finished(tmp_path / name, [f"sampler={name}"])) for name in ("a", "b")])
    for name in ("b", "c"):
        finished(tmp_path / name, [f"sampler={name}"], ap=0.5)
    runs = [str(tmp_path / name) for name in ("b", "c")]
    monkeypatch.setattr(sys, "argv", ["table", *runs, "--csv", str(file), "--add"])
    main()
    found = {cells["command"].rpartition("=")[2]: cells["AP"] for cells in read(file)}
    assert found == {"a": "0.1235", "b": "0.5000", "c": "0.5000"}


@pytest.mark.parametrize("before", ["", "| old |\n"])
def test_a_table_takes_its_own_place_alone(tmp_path: Path, before: str) -> None:
    page = tmp_path / "page.md"
    other = "\n<!-- b.csv -->\n| b |\n<!-- end -->\n"
    page.write_text(f"<!-- a.csv -->\n{before}<!-- end -->\n{other}")
    put("| new |\n", "a.csv", page)
    assert page.read_text() == f"<!-- a.csv -->\n| new |\n<!-- end -->\n{other}"
    with pytest.raises(SystemExit, match="no place for c.csv"):
        put("", "c.csv", page)
