"""The answer of experiments/which_sampler, from runs of known truth."""

from itertools import product

import numpy as np
import pytest

pytest.importorskip("scipy")

from experiments.report.runs import Run
from experiments.report.verdicts import BETTER, EQUIVALENT, WORSE
from experiments.which_sampler.answer import PRESET, answer, lines
from experiments.which_sampler.choose import ARMS, SETS

GAINS = {"ohem": 3.0, "focal": -3.0, "preset": -5.0}


def fabricated(
    rng: np.random.Generator, std: float, image: float
) -> tuple[list[Run], dict[str, np.ndarray]]:
    """Four sets, five folds of other difficulty, two seeds; images move arms by ``image`` AP."""
    runs, draws = [], {}
    hard = {key: rng.normal(50, 5) for key in product(SETS, range(5))}
    effects = {key: rng.normal(0, image) for key in product(SETS, (*ARMS, PRESET), range(5))}
    shared = {key: rng.normal(0, image, 500) for key in effects}
    for name, arm, fold, seed in product(SETS, (*ARMS, PRESET), range(5), range(2)):
        ap = hard[name, fold] + GAINS.get(arm, 0.0) + effects[name, arm, fold] + rng.normal(0, std)
        settings = {"net": "slim", "case": f"{name}_{arm}", "data.fold": str(fold)}
        label = f"{name}_{arm}_{fold}_{seed}"
        run = Run(label, "COMPLETED", settings=settings, seed=seed, figures={"AP": ap / 100})
        runs.append(run)
        draws[label] = (ap + shared[name, arm, fold]) / 100
    return runs, draws


def test_gains_are_found_over_sets_and_equal_arms_are_equivalent() -> None:
    runs, draws = fabricated(np.random.default_rng(0), 0.7, 0.3)
    found, by_set = answer(runs, draws, "slim")
    assert {arm: verdict.answer for arm, verdict in found.items()} == {
        "ohem": BETTER, "iou_balanced": EQUIVALENT, "pisa": EQUIVALENT, "focal": WORSE,
        "preset": WORSE,
    }  # fmt: skip
    own = [100 * r.figures["AP"] for r in runs if r.settings["case"].endswith("ohem")]
    base = [100 * r.figures["AP"] for r in runs if r.settings["case"].endswith("random")]
    assert found["ohem"].difference.mean == pytest.approx(np.mean(own) - np.mean(base))
    assert by_set["chess"]["ohem"].n == 10 and len(lines(found, by_set)) == 5


def test_the_images_error_is_the_mean_s_over_folds_and_sets() -> None:
    rng = np.random.default_rng(0)
    runs, draws = fabricated(rng, 0.5, 2.0)
    with_images, without = (
        answer(runs, d, "slim")[0]["pisa"].difference.scale for d in (draws, {})
    )
    # 20 folds of a difference between two arms, each with a standard deviation of 2.
    wanted = 2.0 * np.sqrt(2 / 20)
    assert np.sqrt(with_images**2 - without**2) == pytest.approx(wanted, rel=0.15)


def test_equal_arms_differ_as_rarely_as_promised() -> None:
    rng, false = np.random.default_rng(0), 0
    for _ in range(20):
        runs, draws = fabricated(rng, 0.7, 0.8)
        found = answer(runs, draws, "slim")[0]
        false += any(found[arm].differs for arm in ("iou_balanced", "pisa"))
    assert false <= 4


def test_a_missing_run_and_a_repeated_one_are_refused() -> None:
    runs, draws = fabricated(np.random.default_rng(0), 0.7, 0.3)
    with pytest.raises(LookupError, match="1 runs are missing: "):
        answer(runs[1:], draws, "slim")
    with pytest.raises(LookupError, match="no run of net=lite0"):
        answer(runs, draws, "lite0")
    with pytest.raises(LookupError, match="two runs of "):
        answer([*runs, runs[0]], draws, "slim")
