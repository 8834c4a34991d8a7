"""The answer of experiments/which_sampler, from runs of known truth."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from experiments.report.runs import Run
from experiments.report.verdicts import BETTER, EQUIVALENT, WORSE
from experiments.which_sampler.answer import (
    BASE,
    FOLDS,
    WITHOUT_CHESS,
    answers,
    by_stratum,
    cautious,
    images_alone,
    interaction,
    lines,
    values,
)
from experiments.which_sampler.choose import ARMS, SETS, SETTINGS, values_of
from experiments.which_sampler.page import TITLES, WIDENED, figure, write
from experiments.which_sampler.protocol import CLIP, PRESET, STEPS, check_test, check_tuning

EVERY = (*ARMS, PRESET)
STUDY = Path(__file__).parents[1] / "experiments/which_sampler"
GAINS = {"ohem": 3.0, "focal": -3.0, PRESET: -5.0}


def fabricated(
    rng: np.random.Generator,
    std: float,
    image: float,
    gains: Mapping[str, float] = GAINS,
    of_sets: float = 0.0,
) -> list[Run]:
    """Images of a fold move an arm by ``image`` on both networks alike; runs differ by ``std``."""
    runs = []
    for name in SETS:
        extra = {arm: rng.normal(0, of_sets) for arm in EVERY}
        for fold in range(FOLDS):
            hard = rng.normal(50, 5)
            moved = {arm: rng.normal(0, image) for arm in EVERY}
            for arm, net in product(EVERY, STEPS):
                ap = hard + gains.get(arm, 0.0) + extra[arm] + moved[arm] + rng.normal(0, std)
                settings = {"net": net, "case": f"{name}_{arm}", "data.fold": str(fold)}
                label = f"{net}_{name}_{arm}_{fold}"
                figures = {"AP": ap / 100}
                runs.append(Run(label, "COMPLETED", settings=settings, seed=fold, figures=figures))
    return runs


def answered(runs: list[Run]) -> dict:
    return answers(by_stratum(runs))


def test_gains_are_found_and_equal_arms_are_equivalent() -> None:
    runs = fabricated(np.random.default_rng(0), 0.7, 0.4)
    found = answered(runs)
    assert list(found) == ["all", *STEPS, *SETS, WITHOUT_CHESS]
    assert {arm: verdict.answer for arm, verdict in found["all"].items()} == {
        "ohem": BETTER, "iou_balanced": EQUIVALENT, "pisa": EQUIVALENT, "focal": WORSE,
        PRESET: WORSE,
    }  # fmt: skip
    assert len(lines(found)) == 8 * 5


def test_the_answer_is_the_mean_over_networks_sets_and_folds() -> None:
    runs = fabricated(np.random.default_rng(0), 0.7, 0.4)
    mean = {}
    for net, name, arm in product(STEPS, SETS, ("ohem", BASE)):
        case = {"net": net, "case": f"{name}_{arm}"}
        mean[net, name, arm] = np.mean(
            [100 * r.figures["AP"] for r in runs if case.items() <= r.settings.items()]
        )
    gain = {(n, s): mean[n, s, "ohem"] - mean[n, s, BASE] for n, s in product(STEPS, SETS)}
    found = answered(runs)
    assert found["all"]["ohem"].difference.mean == pytest.approx(np.mean(list(gain.values())))
    rest = [own for (_, name), own in gain.items() if name != "chess"]
    assert found[WITHOUT_CHESS]["ohem"].difference.mean == pytest.approx(np.mean(rest))
    assert found["chess"]["ohem"].difference.mean == pytest.approx(
        (gain["slim", "chess"] + gain["lite0", "chess"]) / 2
    )


def test_a_second_network_on_the_same_images_adds_no_certainty_about_images() -> None:
    """With the same runs on both, all errors are those of one network."""
    runs = fabricated(np.random.default_rng(1), 0.7, 2.0)
    one = [run for run in runs if run.settings["net"] == "slim"]
    both = [replace(r, settings=r.settings | {"net": net}) for r in one for net in STEPS]
    found = answers(by_stratum(both))
    all_, slim = (found[group]["pisa"].difference.scale for group in ("all", "slim"))
    assert all_ == pytest.approx(slim)


def test_equal_arms_differ_as_rarely_as_promised_and_intervals_hold() -> None:
    """Where images matter as much as runs, and an arm gains 1: 5 % and 95 %, of 40 studies."""
    rng, false, held = np.random.default_rng(0), 0, 0
    for _ in range(40):
        found = answered(fabricated(rng, 0.74, 0.84, {"ohem": 1.0}))["all"]
        tuned = {arm: verdict for arm, verdict in found.items() if arm != PRESET}
        false += any(verdict.differs for arm, verdict in tuned.items() if arm != "ohem")
        held += all(v.interval[0] <= (a == "ohem") <= v.interval[1] for a, v in tuned.items())
    assert false <= 5 and held >= 34


def test_p_of_the_interaction_is_even_without_one_and_small_with_one() -> None:
    rng = np.random.default_rng(0)
    none = [interaction(by_stratum(fabricated(rng, 0.7, 0.8))) for _ in range(40)]
    assert sum(p < 0.05 for p in none) <= 6 and 0.35 < np.mean(none) < 0.65
    assert interaction(by_stratum(fabricated(rng, 0.7, 0.8, of_sets=3.0))) < 0.001


def test_a_run_that_diverged_counts_as_0_and_leaves_no_arm_out() -> None:
    runs = fabricated(np.random.default_rng(0), 0.7, 0.4)
    failed = [
        replace(r, figures={}, status="FAILED") if "raccoon_focal" in r.name else r for r in runs
    ]
    found = by_stratum(failed)
    assert set(values(found, "raccoon", ["slim"])["focal"].values()) == {0.0}
    assert answered(failed)["all"]["focal"].p is not None


@pytest.mark.parametrize("net", list(STEPS))
def test_one_run_that_diverged_blurs_its_own_arm_alone(net: str) -> None:
    runs = fabricated(np.random.default_rng(0), 0.7, 0.4)
    failed = [replace(r, figures={}) if r.name == f"{net}_raccoon_focal_0" else r for r in runs]
    usual, found = answered(runs)["all"], answered(failed)["all"]
    for arm in ("ohem", "iou_balanced", "pisa"):
        # Random sampling's error is shared, so the others' hangs a little on which arms there are.
        assert found[arm].difference.mean == usual[arm].difference.mean
        assert found[arm].difference.scale == pytest.approx(usual[arm].difference.scale, rel=0.1)
    assert found["focal"].difference.scale > 2 * usual["focal"].difference.scale


MADE = {"commit": "01234567", "instructions": "AVX2", "threads": "1", "torch": "2"}


def test_runs_of_another_protocol_are_refused() -> None:
    chosen = dict.fromkeys(product(SETS, ARMS), SETTINGS[2])
    runs = [
        replace(run, made=MADE, settings=run.settings | protocol(run))
        for run in fabricated(np.random.default_rng(0), 0.7, 0.3)
    ]
    check_test(runs, chosen)
    refused(runs, lambda given: check_test(given, chosen))
    with pytest.raises(LookupError, match="has loss_weight.rcnn.class=2, the protocol 4"):
        check_test(runs, chosen | {("cards", "pisa"): "lr0.02_class4_box1"})


def test_tuning_of_another_protocol_is_refused() -> None:
    usual = {"net": "slim", "trainer.max_steps": "400", "trainer.clip_norm": "None", "seed": "0"}
    runs = [
        Run(f"{arm}{setting}", "COMPLETED", made=MADE,
            settings={"arm": arm, "setting": setting, **usual, **values_of(setting)})
        for arm, setting in product(ARMS, SETTINGS)
    ]  # fmt: skip
    check_tuning(runs)
    refused(runs, check_tuning)


def refused(runs: list[Run], check: Callable[[list[Run]], None]) -> None:
    """That a check refuses rows of which one was made or set in another way."""
    first, *others = runs
    for key, value in (
        *(("commit", text) for text in ("76543210", "01234567 with changes", "")),
        *(("instructions", "AVX512"), ("threads", "2"), ("torch", "3")),
    ):
        with pytest.raises(LookupError, match=f"not one known value of {key}"):
            check([replace(first, made=MADE | {key: value}), *others])
    with pytest.raises(LookupError, match="not one known value of instructions: unknown"):
        check([replace(run, made={"commit": "01234567"}) for run in runs])
    for key in ("optimizer.lr", "trainer.max_steps", "trainer.clip_norm", "seed"):
        with pytest.raises(LookupError, match=f"{first.name} has {key}=7, the protocol "):
            check([replace(first, settings=first.settings | {key: "7"}), *others])


def protocol(run: Run) -> dict[str, str]:
    """What a row has beside its case, at the third setting."""
    net, fold = run.settings["net"], run.settings["data.fold"]
    setting = SETTINGS[0] if run.settings["case"].endswith(PRESET) else SETTINGS[2]
    own = {"trainer.max_steps": STEPS[net], "trainer.clip_norm": CLIP[net], "seed": fold}
    return own | values_of(setting)


def test_two_arms_that_diverged_have_errors_of_their_own() -> None:
    runs = fabricated(np.random.default_rng(0), 0.7, 0.4)
    lost = {f"slim_raccoon_{arm}_0" for arm in ("focal", "pisa")}
    failed = [replace(run, figures={}) if run.name in lost else run for run in runs]
    found = answered(failed)["raccoon"]
    errors = [found[arm].difference.errors for arm in ("focal", "pisa")]
    assert abs(np.corrcoef(errors)[0, 1]) < 0.1


def test_missing_and_repeated_runs_are_refused() -> None:
    runs = fabricated(np.random.default_rng(0), 0.7, 0.3)
    with pytest.raises(LookupError, match="1 runs are missing: slim bccd random"):
        by_stratum(runs[1:])
    with pytest.raises(LookupError, match="240 runs are missing: slim bccd random"):
        by_stratum([])
    with pytest.raises(LookupError, match="two runs of slim bccd random"):
        by_stratum([*runs, runs[0]])


def test_a_preset_that_tuning_chose_is_random_sampling() -> None:
    runs = fabricated(np.random.default_rng(0), 0.7, 0.3)
    without = [run for run in runs if "bccd_preset" not in run.name]
    with pytest.raises(LookupError, match="10 runs are missing: slim bccd preset"):
        by_stratum(without)
    with pytest.raises(LookupError, match="slim bccd: the preset is random sampling"):
        by_stratum(runs, same=["bccd"])
    found = answers(by_stratum(without, same=["bccd"]))
    preset = found["bccd"][PRESET].difference
    assert (preset.mean, preset.scale) == (0, 0)
    assert found["chess"][PRESET].difference.mean < -3
    # The other arms' errors do not change: a copy of the baseline is no further arm.
    with_own = answers(by_stratum(runs))["bccd"]
    assert found["bccd"]["ohem"].interval == with_own["ohem"].interval


def test_the_cautious_answer_has_errors_one_and_a_half_times_as_large() -> None:
    """1 / 5 folds becomes 1 / 5 + 1 / 4: of the variance 2.25."""
    found = by_stratum(fabricated(np.random.default_rng(0), 0.7, 0.4))
    usual, wide = answers(found)["all"], cautious(found)
    for arm in usual:
        assert wide[arm].difference.mean == usual[arm].difference.mean
        assert wide[arm].difference.scale == pytest.approx(1.5 * usual[arm].difference.scale)
        assert wide[arm].p >= usual[arm].p


def test_the_page_has_every_group_and_the_best_setting_of_each_arm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    seconds = {"ohem": 1.5}
    runs = [
        replace(r, step_seconds=seconds.get(r.settings["case"].partition("_")[2], 1.0))
        for r in fabricated(rng, 0.7, 0.4)
    ]
    tuned = [
        Run(
            f"{arm}{setting}{name}",
            "COMPLETED",
            figures={"AP": 0.4 + 0.1 * (setting == SETTINGS[2])},
            settings={"arm": arm, "setting": setting, "set": name},
        )
        for arm, setting, name in product(ARMS, SETTINGS, SETS)
    ]
    page = tmp_path / "README.md"
    shutil.copy(STUDY / "README.md", page)  # has a place for each table
    found = by_stratum(runs)
    write(page, answers(found), cautious(found), tuned, runs)
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines()]
    assert [row[1:3] for row in rows if row[0] == "`ohem`" and row[1] == "1.50"] == [
        ["1.50", "1.50"]
    ]
    assert ["`focal`", "40.0", "40.0", "**50.0**", "40.0", "40.0", "40.0"] in rows
    over = {row[1] for row in rows if row[0] == "`pisa`" and len(row) == 6}
    assert over == {TITLES["all"], WIDENED, *STEPS, *SETS, WITHOUT_CHESS}
    assert (tmp_path / "differences.png").exists()
    panels = figure(answers(found)).axes
    assert [axes.get_title() for axes in panels] == [TITLES["all"], *STEPS, *SETS, WITHOUT_CHESS]
    assert {t.get_text() for t in panels[0].get_yticklabels()} == {*ARMS[1:], PRESET}


def test_the_error_of_images_alone_is_that_of_the_draws() -> None:
    """Each arm's draws have a standard deviation of 2 in every fold, on each network apart."""
    runs = fabricated(np.random.default_rng(0), 0.7, 0.3)
    rng, drawn = np.random.default_rng(0), {}
    for run in runs:
        drawn[run.name] = rng.normal(0, 0.02, 500)
    draws = {run.name: run.figures["AP"] + drawn[run.name] for run in runs}
    found = images_alone(by_stratum(runs), draws)
    assert found["ohem"] == pytest.approx(2 * np.sqrt(2 / 40), rel=0.05)
    assert np.isnan(images_alone(by_stratum(runs), {})["ohem"])
