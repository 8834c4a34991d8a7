"""What the studies say is what their committed runs say."""

import csv
import math
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean, median, variance

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from scipy.stats import norm

from experiments.conditions.__main__ import PICTURES, page
from experiments.conditions.map import Map, make
from experiments.conditions.tables import scale, table
from experiments.report import markdown as report
from experiments.report.__main__ import study_of_csv
from experiments.report.csv_files import read_csv
from experiments.report.differences import Rules, compared
from experiments.report.markdown import markdown
from experiments.report.sentences import least_seen, sentences
from experiments.report.study import Plan, Study, study
from experiments.report.tables import compare, ratios, tables
from experiments.report.verdicts import BETTER, FAILED, UNDECIDED, WORSE, Verdict, verdicts

ROOT = Path(__file__).parents[1]
BCCD, MAP = ROOT / "experiments/bccd_samplers", ROOT / "experiments/imbalance_map"
LEARNED = ROOT / "experiments/learned_weights"
CURVES = ["differences", "curves", "precision", "errors"]
ONE = ROOT / "experiments/detector_figures"
TAIL, NOISE = ROOT / "experiments/long_tail", ROOT / "experiments/label_noise"
CONTROL, OHEM, MATCHED = "matched=random_as_ohem", "sampler=ohem", "matched=ohem sampler=ohem"
METHODS = ("ohem", "pisa", "focal", "noisy_anchors")
RATES = ("data.swapped_classes", "data.moved_boxes", "data.dropped_boxes")
AXES = ("data.clutter", "data.imbalance", "data.object_size")


def shown(page: Path, source: Path) -> str:
    """What stands in a page below the comment that names a file."""
    _, _, after = page.read_text().partition(f"<!-- {source.relative_to(ROOT).as_posix()} -->\n")
    return after.partition("<!-- end -->")[0]


def test_the_index_lists_every_study() -> None:
    text = (ROOT / "experiments/README.md").read_text()
    pages = sorted((ROOT / "experiments").glob("*/README.md"))
    assert len(pages) > 7
    assert [p for p in pages if f"({p.parent.name}/README.md)" not in text] == []


@pytest.fixture(scope="module")
def map_() -> Map:
    return make(read_csv(MAP / "conditions.csv"), AXES, "method=random")


@pytest.fixture(scope="module")
def bccd() -> Study:
    return replace(study(read_csv(BCCD / "runs.csv")), family="matched")


@pytest.fixture(scope="module")
def answers(bccd: Study) -> dict[str, Verdict]:
    return compare(bccd)


def test_the_map_is_made_from_its_runs(map_: Map) -> None:
    assert all((MAP / f"{name}.png").exists() for name in PICTURES)
    assert (MAP / "conditions.md").read_text() == page(map_)
    assert shown(MAP / "README.md", MAP / "conditions.csv") == markdown(table(map_)) + "\n"


def test_what_the_map_answers_holds(map_: Map) -> None:
    """As its README and the project's."""
    found = {m.removeprefix("method="): v.answer for m, v in map_.overall.items()}
    undecided = ("class_weights", "hard_negative", "iou_balanced", "guided_all")
    assert found == {
        **{"ohem": BETTER, "pisa": BETTER, "focal": WORSE},
        **dict.fromkeys(undecided, UNDECIDED),
    }
    assert not any(v.differs for v in (*map_.verdicts.values(), *map_.changes.values()))
    assert (map_.depends or 0) > 0.05
    assert f"below {least_seen(map_.verdicts):.0f} AP" in (MAP / "README.md").read_text()
    lower = [v.difference.mean < 0 for (_, m), v in map_.verdicts.items() if "guided" in m]
    assert len(lower) == 7 and all(lower)
    common = verdicts(compared(map_.means, map_.baseline, Rules(common=True)))
    assert common["method=class_weights"].answer == UNDECIDED  # guided_all makes it large


def test_the_bccd_study_is_made_from_its_runs(bccd: Study) -> None:
    assert all((BCCD / f"{name}.png").exists() for name in CURVES)
    assert (BCCD / "report.md").read_text() == report.page(bccd, CURVES)
    first = markdown(tables(bccd)[0]) + "\n"
    assert shown(BCCD / "README.md", BCCD / "runs.csv") == first


def test_what_the_bccd_study_answers_holds(bccd: Study, answers: dict[str, Verdict]) -> None:
    """As its README and the project's: of all presets and variants, whole."""
    presets = {m: v for m, v in answers.items() if not bccd.in_family(m)}
    assert Counter(v.answer for v in presets.values()) == {UNDECIDED: 18, WORSE: 1, FAILED: 1}
    assert presets["sampler=ohem_quota"].answer == WORSE
    assert bccd.not_learnt == {"box_loss=ghm_r", "box_loss=ghm_r matched=ghm_r"}
    assert len(answers) == 31 and [answers[m].answer for m in (OHEM, CONTROL)] == [UNDECIDED] * 2
    means = [answers[m].difference.mean for m in (OHEM, CONTROL)]
    assert means == pytest.approx([1.4, 1.7], abs=0.05)
    assert sorted(v.difference.mean for v in answers.values())[-2:] == means
    assert least_seen(answers) == pytest.approx(2.2, abs=0.05)
    five = {"random", "ohem", "libra", "pisa", "focal"}
    for method, runs in bccd.methods.items():
        many = method.rpartition("=")[2] in five and not bccd.in_family(method)
        assert len(runs) == (5 if many else 3), method
    assert "To detect 0.5 AP with 80 % power: 35 seeds per method" in sentences(bccd)[-1]
    common = compare(replace(bccd, plan=Plan(common=True)))
    apart = {m for m, v in common.items() if v.answer != answers[m].answer}
    assert apart == {"loss=ghm_c matched=ghm_c"}


def test_p_of_ohem_and_of_the_control_hangs_on_choices(bccd: Study) -> None:
    for method, least, most in ((CONTROL, 0.01, 0.31), (OHEM, 0.05, 0.32)):
        found = []
        for alone, common, blocked in product((False, True), (False, True), (False, True)):
            runs = {
                m: own
                for m, own in bccd.samples().items()
                if not alone or m == bccd.baseline or bccd.in_family(m) == bccd.in_family(method)
            }
            own = verdicts(compared(runs, bccd.baseline or "", Rules(blocked, common)))[method]
            found += [own.p, own.holm]
        assert (round(min(found), 2), round(max(found), 2)) == (least, most)


@pytest.mark.parametrize(
    ("seeds", "scale", "choice", "half"), [(3, 1.5, 0.5, 0.85), (5, 1.2, 0.2, 0.75)]
)
def test_scale_and_choice(
    bccd: Study, seeds: int, scale: float, choice: float, half: float
) -> None:
    runs = bccd.samples()
    names = (bccd.baseline or "", CONTROL, MATCHED, OHEM)
    cells = [[v for seed, v in runs[m].items() if seed < seeds] for m in names]
    small, control, matched, ohem = map(fmean, cells)
    assert (control - small + ohem - matched) / 2 == pytest.approx(scale, abs=0.05)
    assert (matched - small + ohem - control) / 2 == pytest.approx(choice, abs=0.05)
    learnt = [own for m, own in runs.items() if m not in bccd.not_learnt]
    squares = sum((len(own) - 1) * variance(own.values()) for own in learnt)
    std = math.sqrt(squares / sum(len(own) - 1 for own in learnt))
    assert std == pytest.approx(0.74, abs=0.01)
    error = std * math.sqrt(sum(1 / len(own) for own in cells)) / 2
    assert norm.isf(0.025) * error == pytest.approx(half, abs=0.03)


def test_other_images_move_one_pair_by_nine_tenths() -> None:
    with (BCCD / "images.csv").open(newline="") as rows:
        found = [(float(r["high"]) - float(r["low"])) for r in csv.DictReader(rows)]
    assert 100 * median(found) / 2 / norm.isf(0.025) == pytest.approx(0.9, abs=0.05)


def test_the_machines_of_the_bccd_study() -> None:
    machines = Counter(run.made["machine"] for run in read_csv(BCCD / "runs.csv"))
    assert machines == {"first": 77, "second": 29}


@pytest.fixture(scope="module")
def tail() -> Study:
    return replace(study(read_csv(TAIL / "runs.csv"), "tail=random"), plan=Plan(seeds=3))


def test_the_page_of_the_tail_is_made_from_its_runs(tail: Study) -> None:
    assert {len(runs) for runs in tail.methods.values()} == {3} and len(tail.methods) == 8
    assert (TAIL / "report.md").read_text() == report.page(tail, ["differences", "curves"])
    assert shown(TAIL / "README.md", TAIL / "runs.csv") == markdown(tables(tail)[0]) + "\n"


def test_what_was_seen_of_the_tail_holds(tail: Study) -> None:
    text = " ".join((TAIL / "README.md").read_text().split())
    ap, rare, common, frequent = (
        {m.removeprefix("tail="): v for m, v in tail.verdicts_on(name).items()}
        for name in ("AP", "APr", "APc", "APf")
    )
    best = "repeat_factor"
    assert {arm for arm, v in ap.items() if v.differs} == {best}
    assert ap[best].answer == rare[best].answer == common[best].answer == BETTER
    assert not any(v.differs for v in frequent.values())
    gains = {arm: f"{v.difference.mean:+.1f}" for arm, v in rare.items()}
    assert f"(APr) gain {gains[best][1:]} AP and common ones (APc) " in text
    assert f"(APc) {common[best].difference.mean:.1f}. The six losses" in text
    assert f"`{best}`: {ap[best].difference.mean:+.1f} AP, better; frequent" in text
    assert f"(APf) {frequent[best].difference.mean:+.1f}, undecided" in text
    for arm, gain in gains.items():
        assert arm == best or any(f"`{arm}` {verb}{gain}" in text for verb in ("has ", "")), arm
    assert f"a true difference of {least_seen(ap):.1f} AP over all classes" in text
    lowest = sorted(frequent, key=lambda arm: frequent[arm].difference.mean)[:2]
    assert sorted(lowest) == ["federated", "focal"]
    assert all(f"{frequent[arm].difference.mean:+.1f}" == "-2.2" for arm in lowest)


@pytest.fixture(scope="module")
def noise() -> Map:
    return make(read_csv(NOISE / "conditions.csv"), RATES, "method=random", Plan(seeds=3))


def test_the_page_of_label_noise_is_made_from_its_runs(noise: Map) -> None:
    assert len(noise.runs) == 126 and all((NOISE / f"{name}.png").exists() for name in PICTURES)
    assert (NOISE / "conditions.md").read_text() == page(noise)
    assert shown(NOISE / "README.md", NOISE / "conditions.csv") == markdown(table(noise)) + "\n"


def test_who_suffers_from_wrong_labels(noise: Map) -> None:
    """The answer of its README and the project's."""
    text = " ".join((NOISE / "README.md").read_text().split())
    over = {m.removeprefix("method="): v for m, v in noise.overall.items()}
    assert {m: v.answer for m, v in over.items()} == {
        **{"ohem": BETTER, "ghm": FAILED},
        **dict.fromkeys(("pisa", "noisy_anchors", "focal"), UNDECIDED),
    }
    low, high = over["ohem"].interval
    mean = over["ohem"].difference.mean
    assert f"mean of all conditions ({mean:+.1f} AP, interval {low:+.1f} to {high:+.1f})" in text
    assert (noise.depends or 1) < 0.001
    changes = {
        (RATES[place].removeprefix("data."), method.removeprefix("method=")): v
        for (place, method), v in noise.changes.items()
    }
    gains = [
        [noise.verdicts[condition, "method=ohem"].difference.mean for condition in axis]
        for axis in noise.axes
    ]
    clean = f"{gains[0][0]:+.1f}"
    assert f"with swapped classes ({clean} to {gains[0][-1]:+.1f})" in text
    assert f"with moved boxes ({clean} to {gains[1][-1]:+.1f})" in text
    assert f"With dropped boxes it is {gains[2][1]:+.1f} and {gains[2][2]:+.1f}, and" in text
    dropped = changes["dropped_boxes", "ohem"]
    ends = "{:+.1f} to {:+.1f}".format(*dropped.interval)
    assert f"(change {dropped.difference.mean:+.1f}, interval {ends})" in text
    assert {key for key, v in changes.items() if v.differs} == {
        ("swapped_classes", "pisa"),
        ("moved_boxes", "focal"),
    }
    for key in (("swapped_classes", "pisa"), ("moved_boxes", "focal")):
        assert f"loses {-changes[key].difference.mean:.1f} AP more than random" in text
        assert "({:+.1f} to {:+.1f})".format(*changes[key].interval) in text
    centre = {m: fmean(noise.values(noise.centre, f"method={m}")) for m in ("ghm", "random")}
    assert f"{centre['ghm']:.1f} AP where random sampling has {centre['random']:.1f}" in text
    assert sum("method=ghm" in own.not_learnt for own in noise.studies.values()) == 6
    assert f"differences of {least_seen(noise.verdicts):.1f} AP or more" in text


def test_how_pisa_and_ghm_failed_under_wrong_labels(noise: Map) -> None:
    """The second numbers of its README: AP50 and AR100, gradient norms, sizes of the terms."""
    text = " ".join((NOISE / "README.md").read_text().split())
    ends = [noise.studies[condition] for condition in (noise.axes[0][0], noise.axes[0][-1])]

    def mean(study: Study, method: str, figure: str) -> float:
        return fmean(study.values(f"method={method}", figure).values())

    for figure in ("AP50", "AR100"):
        pisa, base = (
            "{:.1f} to {:.1f}".format(*(mean(study, method, figure) for study in ends))
            for method in ("pisa", "random")
        )
        assert f"{figure} ({pisa}; random sampling {base})" in text
    norms = {
        name: fmean(
            run.grad_norm or 0.0
            for study in noise.studies.values()
            for run in study.methods[f"method={name}"].values()
        )
        for name in ("ghm", "random")
    }
    said = f"gradient norms average {norms['ghm']:.0f}, and the limit (`trainer.clip_norm`) is 10"
    assert said in text and f"random sampling has {norms['random']:.0f}" in text
    rows = {row[0]: [cell.split(" ±")[0] for cell in row[1:]] for row in scale(noise).rows}
    sizes = {name: [float(cell) for cell in rows[f"method={name}"]] for name in METHODS}
    ohem, pisa, focal = (sizes[name][:2] for name in ("ohem", "pisa", "focal"))
    assert f"are {ohem[0]:.1f} and {ohem[1]:.1f} times those of random sampling for OHEM" in text
    assert f"{pisa[0]:.1f} and {pisa[1]:.1f} times for PISA" in text
    assert f"and {focal[0]:.2f} and {focal[1]:.1f} times for focal loss" in text
    assert f"class loss is {sizes['noisy_anchors'][2]:.1f} times as large for noisy" in text


def test_what_was_seen_of_wrong_labels_holds() -> None:
    """The table and the sentences below it are of the figure's numbers after the last step."""
    text = (NOISE / "README.md").read_text()
    with (NOISE / "wrong_labels.csv").open(newline="") as rows:
        found = {
            (row["run"], row["group"]): (int(row["wrong"]), int(row["total"]))
            for row in csv.DictReader(rows)
            if row["site"] == "rcnn" and row["step"] == "600"
        }
    groups, kinds = ("all", "random", "OHEM", "GHM's last bin"), ("swapped", "moved", "dropped")
    taken = []
    for kind, rest in zip(kinds, ("classes", "boxes", "boxes"), strict=True):
        own = [found[f"random {kind}", group] for group in groups]
        cells = [f"{wrong} of {total:,}" for wrong, total in own]
        assert f"| {kind} {rest} | {' | '.join(cells)} |" in text
        (wrong, every), (_, mined) = own[0], own[2]
        assert 0.3 < mined / every < 0.35 and round(100 * wrong / every) in (2, 3)
        taken.append(own[2][0] / wrong)
        assert 1 - own[2][0] / mined >= 0.92 and own[3][1] < 100
        assert found[f"ghm {kind}", "GHM's last bin"] == (0, 0)
    assert f"{100 * min(taken):.0f} to {100 * max(taken):.0f} % of the wrong ones" in text
    of_ohem = [[found[f"ohem {kind}", group] for kind in kinds] for group in groups[2:]]
    first, second, last = (wrong for wrong, _ in of_ohem[0])
    assert f"{first}, {second} and {last} wrong proposals are among its samples" in text
    first, second, last = (f"{wrong} of {total}" for wrong, total in of_ohem[1])
    assert f"{first}, {second} and {last} in the last bin are wrong" in " ".join(text.split())


def test_learned_weights_are_not_shown_to_do_more_than_the_scale() -> None:
    found = study_of_csv(LEARNED / "runs.csv", "weigher=equal_terms", LEARNED)
    found = replace(found, plan=Plan(seeds=3))
    assert {len(runs) for runs in found.methods.values()} == {3} and len(found.methods) == 3
    assert shown(LEARNED / "README.md", LEARNED / "runs.csv") == markdown(tables(found)[0]) + "\n"
    assert (LEARNED / "report.md").read_text() == report.page(found, CURVES)
    text = " ".join((LEARNED / "README.md").read_text().split())
    swn, none = (found.verdicts[f"weigher={name}"] for name in ("swn", "none"))
    assert swn.answer == none.answer == UNDECIDED
    ends = "{:+.1f} to {:+.1f}".format(*swn.interval)
    assert f"the control it has {swn.difference.mean:+.1f} AP (interval {ends})" in text
    ends = "{:+.1f} to {:+.1f}".format(*none.interval)
    assert f"no weights {none.difference.mean:+.1f} ({ends})" in text
    assert f"true difference of {least_seen(found.verdicts):.1f} AP, so" in text
    sizes = {
        name: [
            fmean(ratios(*(found.values(m, f"loss {term}") for m in (method, found.baseline))))
            for term in ("classifier", "box_reg")
        ]
        for name, method in (("swn", "weigher=swn"), ("none", "weigher=none"))
    }
    of_swn, of_none = ([f"{size:.2f}" for size in sizes[m]] for m in ("swn", "none"))
    assert f"class loss is {of_swn[0]} times and its box loss {of_swn[1]} times" in text
    assert f"without weights they are {of_none[0]} and {of_none[1]} times" in text


def test_what_the_figures_of_one_detector_show() -> None:
    """The numbers in the README are those of the figures' legends."""
    legends: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    with (ONE / "legends.csv").open(newline="") as rows:
        for row in csv.DictReader(rows):
            name, _, value = row["legend"].partition(": ")
            panel = re.sub(r"[\d,]+ ", "", row["panel"])  # without the number of examples
            legends[row["figure"], panel, row["y axis"]][name] = value
    text = " ".join((ONE / "README.md").read_text().split())
    assert all((ONE / f"{figure}.png").exists() for figure, _, _ in legends)
    picks = [
        re.findall(r"[0-9.]+", legends["prime_samples", f"rcnn: {kind}", "class loss"]["216"])
        for kind in ("random", "hard", "prime")
    ]
    loose, hard, prime = (" and ".join(pick) for pick in picks)
    assert f"mean IoU of {loose.replace('and', 'and a mean class loss of')}, hard" in text
    assert f"hard samples {hard}, prime samples {prime}." in text
    half, sharp = (
        {name: value.removeprefix("AP ") for name, value in found.items()}
        for (figure, panel, _), found in legends.items()
        if figure == "prime_precision" and panel in ("IoU 0.5", "IoU 0.9")
    )
    trained, five, many = half
    assert (five, many) == ("top 5, loss -2.5%", "top 25, loss -10.0%")
    assert f"AP50 rises from {half[trained]} to {half[five]}, and" in text
    assert f"AP at IoU 0.9 from {sharp[trained]} to {sharp[five]}." in text
    assert f"first 25 gives {half[many]} and {sharp[many]}." in text
    positives, negatives = (
        {name: value.rstrip("%") for name, value in found.items()}
        for kind in ("positives", "negatives")
        for found in [legends["confidence", f"rcnn: {kind}", "share of the gradient"]]
    )
    plain, two, five = (positives[f"γ = {gamma}"] for gamma in (0, 2, 5))
    assert (
        f"{positives['examples']} % of the positives are in the middle. They have {plain} %" in text
    )
    assert f"loss, {two} % with a gamma of 2, and {five} % with 5." in text
    plain, two, five = (negatives[f"γ = {gamma}"] for gamma in (0, 2, 5))
    assert f"the middle has {plain}, {two} and {five} %." in text
