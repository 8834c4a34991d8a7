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
from experiments.report.statistics import ALPHA, Verdict, in_blocks, verdicts
from experiments.report.study import study
from experiments.report.tables import by_themselves, compare, not_learnt, tables

ROOT = Path(__file__).parents[1]
CONTROL = "matched=random_as_ohem"
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
        return {method.removeprefix("method=") for method, v in verdicts.items() if v.differs}

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


def test_what_the_bccd_study_answers_holds() -> None:
    """As its README and the project's: of all presets and variants, whole."""
    found = study(read_csv(ROOT / "experiments/bccd_samplers/runs.csv"))
    found = replace(found, family="matched")
    verdicts = compare(found)
    means = {m: v.difference.spread.mean for m, v in verdicts.items()}
    assert {m for m, v in verdicts.items() if v.differs and means[m] > 0} == {CONTROL}
    presets = {m: v for m, v in verdicts.items() if not found.in_family(m)}
    assert {m for m, v in presets.items() if v.differs} == {"sampler=ohem_quota"}
    assert len(presets) == 20 and len(verdicts) == 31
    ohem, matched = (f"{more}sampler=ohem" for more in ("", "matched=ohem "))
    assert not_learnt(found) == {"box_loss=ghm_r", "box_loss=ghm_r matched=ghm_r"}
    assert not by_themselves(found)[CONTROL].differs
    control, base = found.values(CONTROL, "AP"), found.values(found.baseline or "", "AP")
    own = {seed: ap for seed, ap in found.values(ohem, "AP").items() if seed in control}
    gains = [sum(values[s] - base[s] for s in control) for values in (own, control)]
    assert gains[0] == pytest.approx(gains[1], rel=0.1)
    assert means[matched] < means[ohem]
    five = {"random", "ohem", "libra", "pisa", "focal"}
    for method, runs in found.methods.items():
        many = method.rpartition("=")[2] in five and not found.in_family(method)
        assert len(runs) == (5 if many else 3), method
    assert presets[ohem].p > ALPHA and verdicts[CONTROL].p <= ALPHA
    assert compare(replace(found, family=None))[CONTROL].p > ALPHA
    quota = [method for method in found.methods if "ohem_quota" in method]
    steadier = {m: runs for m, runs in found.methods.items() if m not in quota}
    assert compare(replace(found, methods=steadier))[ohem].differs
