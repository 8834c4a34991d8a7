"""The statistics of the comparison, against numbers worked by hand and scipy's own tests."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f, t, ttest_rel

from experiments.report.statistics import (
    ALPHA,
    Difference,
    Spread,
    compared,
    depends,
    failed,
    in_blocks,
    paired,
    power,
    seeds_needed,
    spread,
    steady,
    verdicts,
)

VALUES = st.lists(
    st.tuples(*[st.floats(0, 100).map(lambda x: round(x, 3))] * 2), min_size=2, max_size=8
)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def with_p(p: float, n: int = 4) -> Difference:
    """A difference whose paired t test has this p."""
    return Difference(Spread(t.isf(p / 2, n - 1) / math.sqrt(n), 1.0, n), p, n - 1)


def test_spread_by_hand() -> None:
    assert spread([1.0, 2.0, 6.0]) == Spread(3.0, math.sqrt(7), 3)
    assert spread([5.0]) == Spread(5.0, None, 1)


def test_a_paired_difference_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, std 1, t = 2 sqrt(3). With two degrees of freedom the
    # distribution function is 1/2 + t / (2 sqrt(2 + t^2)), and its 97.5 % point is 4.30265.
    found = paired(by_seed(11.0, 22.0, 33.0), by_seed(10.0, 20.0, 30.0))
    assert found.spread == Spread(2.0, 1.0, 3)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))
    half = 4.30265 / math.sqrt(3)
    assert found.interval(0.95) == pytest.approx((2 - half, 2 + half), abs=1e-5)


@given(VALUES)
def test_a_paired_difference_is_scipys(pairs: list[tuple[float, float]]) -> None:
    method, baseline = zip(*pairs, strict=True)
    found = paired(by_seed(*method), by_seed(*baseline))
    if found.spread.std < 1e-6:
        return  # scipy has no t there
    expected = ttest_rel(method, baseline)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)), rel=1e-6)


@given(VALUES)
def test_swapped_sides_negate_the_difference(pairs: list[tuple[float, float]]) -> None:
    method, baseline = (by_seed(*side) for side in zip(*pairs, strict=True))
    found, swapped = paired(method, baseline), paired(baseline, method)
    assert swapped.spread.mean == pytest.approx(-found.spread.mean, abs=1e-9)
    assert swapped.p == pytest.approx(found.p)
    low, high = found.interval(0.95)
    assert swapped.interval(0.95) == pytest.approx((-high, -low), abs=1e-9)


def test_only_common_seeds_are_paired() -> None:
    found = paired({0: 1.0, 1: 5.0, 7: 99.0}, {1: 4.0, 0: 0.0, 8: -99.0})
    assert found.spread == Spread(1.0, 0.0, 2)
    with pytest.raises(ValueError, match="no seed in common"):
        paired({0: 1.0}, {1: 1.0})


def test_identical_runs_show_no_difference() -> None:
    same = by_seed(50.1, 51.7, 49.9)
    verdict = verdicts({"same": paired(same, same)})["same"]
    assert (verdict.p, verdict.interval, verdict.differs) == (1.0, (0.0, 0.0), False)


def test_one_seed_says_nothing() -> None:
    difference = paired({0: 90.0}, {0: 10.0})
    assert difference.p is None
    with pytest.raises(ValueError, match="one seed"):
        difference.interval(0.95)
    verdict = verdicts({"one": difference})["one"]
    assert (verdict.p, verdict.interval, verdict.differs) == (None, None, False)


def test_a_known_difference_is_found_among_methods_without_one() -> None:
    noise = random.Random(0)
    seeds = range(5)
    image_noise = {seed: noise.gauss(0, 2) for seed in seeds}  # both sides have it: it cancels

    def runs(mean: float) -> dict[int, float]:
        return {seed: mean + image_noise[seed] + noise.gauss(0, 0.3) for seed in seeds}

    baseline = runs(50.0)
    methods = {"better": runs(52.0), "worse": runs(48.0), **{f"same{i}": runs(50) for i in "abc"}}
    found = verdicts({name: paired(values, baseline) for name, values in methods.items()})
    assert {name for name, verdict in found.items() if verdict.differs} == {"better", "worse"}
    assert found["better"].interval[0] > 0 > found["worse"].interval[1]


def test_holm_by_hand() -> None:
    # Held against .05/4, .05/3, .05/2: the third is larger, and stops also the fourth.
    values = {"c": 0.030, "a": 0.010, "d": 0.040, "b": 0.015}
    found = verdicts({name: with_p(p) for name, p in values.items()})
    expected = {"a": 4 * 0.010, "b": 3 * 0.015, "c": 2 * 0.030, "d": 2 * 0.030}
    assert {name: verdict.p for name, verdict in found.items()} == pytest.approx(expected)
    assert {name for name, verdict in found.items() if verdict.differs} == {"a", "b"}
    levels = {"a": 1 - 0.05 / 4, "b": 1 - 0.05 / 3, "c": 1 - 0.05 / 2, "d": 1 - 0.05 / 2}
    assert {name: verdict.level for name, verdict in found.items()} == pytest.approx(levels)


def test_a_method_with_one_seed_takes_nothing_from_the_others() -> None:
    untested = Difference(Spread(1.0, None, 1), None, 0)
    alone = verdicts({"a": with_p(0.04)})["a"]
    assert verdicts({"a": with_p(0.04), "one": untested})["a"] == alone
    assert alone.differs and alone.level == 0.95


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_intervals_leave_zero_out_exactly_where_the_sentence_does(values: list[float]) -> None:
    for verdict in verdicts({str(i): with_p(p) for i, p in enumerate(values)}).values():
        assert verdict.p is not None and verdict.interval is not None
        if abs(verdict.p - ALPHA) > 1e-9:
            assert (verdict.interval[0] > 0) == verdict.differs


def test_power_and_seeds_by_published_tables() -> None:
    # Cohen, Statistical Power Analysis (1988): a paired effect of 0.5 std takes 34, one of 0.8
    # takes 15 pairs for a power of 0.8 at a two-sided 0.05.
    assert seeds_needed(0.5, 1.0) == 34
    assert seeds_needed(0.8, 1.0) == 15
    assert power(0.5, 1.0, 34) == pytest.approx(0.808, abs=0.001)


def test_among_many_methods_more_seeds_are_needed() -> None:
    n = seeds_needed(0.5, 1.0, tests=7)
    critical = t.isf(0.05 / 7 / 2, n - 1)
    rng, found = random.Random(2), 0
    for _ in range(1000):
        own = spread([rng.gauss(0.5, 1.0) for _ in range(n)])
        found += own.mean / (own.std / math.sqrt(n)) > critical
    assert n > 34 and found / 1000 == pytest.approx(0.8, abs=0.04)


@given(st.floats(0.01, 5), st.floats(0.001, 20))
def test_the_seeds_needed_are_the_fewest(difference: float, std: float) -> None:
    std = min(std, 20 * difference)
    n = seeds_needed(difference, std)
    assert power(difference, std, n) >= 0.8
    assert n == 2 or power(difference, std, n - 1) < 0.8


def test_power_is_what_simulated_studies_find() -> None:
    noise = random.Random(1)
    found = 0
    for _ in range(1000):
        method = {seed: noise.gauss(1.0, 1.0) for seed in range(8)}
        p = paired(method, dict.fromkeys(range(8), 0.0)).p
        found += p is not None and p < ALPHA
    assert found / 1000 == pytest.approx(power(1.0, 1.0, 8), abs=0.04)


def test_a_shared_spread_takes_fewer_seeds() -> None:
    n = seeds_needed(0.5, 0.5, tests=7, share=7)
    critical = t.isf(0.05 / 7 / 2, 7 * (n - 1))
    rng, found = random.Random(3), 0
    for _ in range(1000):
        own = [[rng.gauss(0, 0.5) for _ in range(n)] for _ in range(7)]
        std = math.sqrt(sum(spread(values).std ** 2 for values in own) / 7)
        found += (0.5 + spread(own[0]).mean) / (std / math.sqrt(n)) > critical
    assert n < seeds_needed(0.5, 0.5, tests=7) and found / 1000 >= 0.77
    assert power(0.5, 0.5, n, 0.05 / 7, 7 * (n - 1)) == pytest.approx(found / 1000, abs=0.04)


@pytest.mark.filterwarnings("error")
@given(st.floats(0, 60), st.integers(2, 40), st.integers(1, 300), st.integers(1, 300))
def test_power_is_a_chance(shift: float, n: int, tests: int, share: int) -> None:
    found = power(shift / math.sqrt(n), 1.0, n, ALPHA / tests, share * (n - 1))
    assert 0 <= found <= 1 + 1e-6


def test_the_power_of_two_seeds_among_many_methods() -> None:
    # Two differences m +- s: t = m / s, beyond the critical value where s is below m over it; s is
    # |z| std / sqrt 2 of a standard normal z, and m almost the true difference.
    critical = t.isf(0.05 / 40 / 2, 1)
    expected = math.erf(0.5 * math.sqrt(2) / (critical * 1e-3) / math.sqrt(2))
    assert power(0.5, 1e-3, 2, 0.05 / 40) == pytest.approx(expected, abs=0.002)
    assert seeds_needed(0.5, 1e-4, tests=40) == 2


def test_runs_without_spread_take_two_seeds() -> None:
    assert seeds_needed(0.5, 0.0) == seeds_needed(0.5, 1e-12) == 2


def test_blocks_by_hand() -> None:
    # Errors around the means of methods and seeds: a (-1, 0, 1) / 2, b the same negated, so their
    # squares sum to 1 with (2 - 1) (3 - 1) = 2 degrees of freedom. A difference has twice a
    # value's variance: 2 * 1 / 2.
    values = {"a": by_seed(10.0, 20.0, 30.0), "b": by_seed(11.0, 20.0, 29.0)}
    found = in_blocks(values, "a")["b"]
    assert found.spread == Spread(0.0, pytest.approx(1.0), 3)
    assert (found.freedom, found.p) == (2, 1.0)


@given(VALUES)
def test_one_block_of_two_methods_is_the_paired_test(pairs: list[tuple[float, float]]) -> None:
    method, baseline = zip(*pairs, strict=True)
    alone = paired(by_seed(*method), by_seed(*baseline))
    if alone.spread.std < 1e-6:
        return
    found = in_blocks({"m": by_seed(*method), "b": by_seed(*baseline)}, "b")["m"]
    assert found.p == pytest.approx(alone.p, rel=1e-6)
    assert found.interval(0.9) == pytest.approx(alone.interval(0.9), rel=1e-6, abs=1e-9)


def test_what_a_seed_shares_is_no_error() -> None:
    lucky = {"a": by_seed(10.0, 50.0, 90.0), "b": by_seed(13.0, 53.0, 93.0)}
    assert in_blocks(lucky, "a")["b"].p == 0.0


def test_what_only_one_run_says_is_not_in_the_spread() -> None:
    values = {"a": by_seed(1.0, 4.0, 7.0), "b": by_seed(-1.0, 1.0, 9.0)}
    expected = in_blocks(values, "a")["b"]
    with_more = {"a": values["a"], "b": values["b"] | {7: 99.0}, "c": {0: 50.0}}
    found = in_blocks(with_more, "a")
    assert found["b"].freedom == expected.freedom == 2
    assert found["b"].spread.std == pytest.approx(expected.spread.std)
    assert found["b"].spread.mean == pytest.approx(expected.spread.mean)
    assert (found["c"].spread.std, found["c"].p) == (None, None)


def test_a_missing_run_leaves_the_others_in_the_spread() -> None:
    values = {"a": by_seed(0.0, 0.0, 7.0), "b": by_seed(-1.0, 1.0, 9.0), "c": {0: 0.0, 1: 0.0}}
    found = in_blocks(values, "a")
    assert {d.freedom for d in found.values()} == {3}
    assert found["b"].spread.mean == pytest.approx(2 / 3)
    brute = minimum_of_squares(values)
    assert found["b"].spread.std == pytest.approx(math.sqrt(2 * brute / 3))


def minimum_of_squares(values: dict[str, dict[int, float]]) -> float:
    """By turns the best methods for these seeds and the best seeds for these methods."""
    rows, columns = dict.fromkeys(values, 0.0), dict.fromkeys(range(3), 0.0)
    for _ in range(200):
        for name, own in values.items():
            rows[name] = sum(v - columns[s] for s, v in own.items()) / len(own)
        for seed in columns:
            there = [own[seed] - rows[name] for name, own in values.items() if seed in own]
            columns[seed] = sum(there) / len(there)
    cells = ((rows[n] + columns[s] - v) for n, own in values.items() for s, v in own.items())
    return sum(error**2 for error in cells)


def test_a_method_that_did_not_learn_is_alone_with_its_spread() -> None:
    base, own = by_seed(50.0, 52.0, 51.0), by_seed(51.0, 52.5, 52.5)
    failed_runs = by_seed(33.0, 20.0, 39.0)  # mean 30.7, of two thirds of 51: 34
    methods = {"base": base, "own": own, "failed": failed_runs}
    found = compared({**methods, "other": {9: 50.0}}, "base")
    assert found == {
        **in_blocks({"base": base, "own": own}, "base"),
        "failed": paired(failed_runs, base),
    }
    assert failed({**methods, "none": {}}, "base") == {"failed"}
    poor = by_seed(34.5, 34.0, 34.5)
    together = {"base": base, "own": own, "poor": poor}
    assert compared(together, "base") == in_blocks(together, "base")
    assert compared({"base": {}, "own": own}, "base") == {}


def test_an_unsteady_method_is_alone_with_its_spread() -> None:
    rng = random.Random(0)
    values = {str(m): by_seed(*(50 + rng.gauss(0, 0.5) for _ in range(3))) for m in range(8)}
    unsteady = by_seed(40.0, 46.0, 43.0)
    found = in_blocks({**values, "unsteady": unsteady}, "0")
    assert found == {**in_blocks(values, "0"), "unsteady": paired(unsteady, values["0"])}
    assert [m for m, difference in found.items() if not difference.common] == ["unsteady"]
    at_the_baseline = in_blocks({**values, "unsteady": unsteady}, "unsteady")
    assert at_the_baseline == {m: paired(own, unsteady) for m, own in values.items()}


def test_who_is_unsteady_by_hand() -> None:
    # Without c the errors of a and b are (-1, 0, 1) / 2 times 1 and -1: their squares sum to 1 with
    # 2 degrees of freedom. With c of (0, x, -x) they are those of all three, balanced, so worked
    # from deviations of rows and columns; c stands out where F(2, 2) of it is beyond 1 % / 3.
    def stands_out(x: float) -> bool:
        values = {
            "a": by_seed(-0.5, 0.0, 0.5),
            "b": by_seed(0.5, 0.0, -0.5),
            "c": by_seed(0, x, -x),
        }
        # Columns have the means 0, x / 3, -x / 3, so that a, b and c leave these squares:
        a = 0.5**2 + (x / 3) ** 2 + (0.5 + x / 3) ** 2
        b = 0.5**2 + (x / 3) ** 2 + (0.5 - x / 3) ** 2
        c = 2 * (2 * x / 3) ** 2
        ratio = (a + b + c - 1.0) / 2 / (1.0 / 2)
        assert ("c" not in steady(values)) == (f.sf(ratio, 2, 2) < 0.01 / 3)
        return "c" not in steady(values)

    assert not stands_out(10.0) and stands_out(30.0)


def test_equally_steady_methods_are_seldom_taken_for_unsteady() -> None:
    # At 1 % about 4 of 400.
    rng, taken = random.Random(0), 0
    for _ in range(400):
        shared = [rng.gauss(0, 3) for _ in range(3)]
        values = {str(m): by_seed(*(s + rng.gauss(0, 0.5) for s in shared)) for m in range(5)}
        taken += len(steady(values)) < 5
    assert 1 <= taken <= 9


def test_equal_methods_show_a_difference_as_rarely_as_promised() -> None:
    # 300 studies of 10 methods and 3 seeds: at 5 % about 15 say something false. Differences share
    # the baseline's errors, for which Holm's correction leaves a margin.
    rng, false = random.Random(0), 0
    for _ in range(300):
        shared = [rng.gauss(0, 3) for _ in range(3)]
        values = {str(m): by_seed(*(s + rng.gauss(0, 0.5) for s in shared)) for m in range(10)}
        found = verdicts(in_blocks(values, "0"))
        false += any(verdict.differs for verdict in found.values())
    assert 3 <= false <= 20


def test_a_baseline_twice_as_unsteady_misleads_as_much_as_the_page_warns() -> None:
    # Of 200 studies of equal methods, the common spread says something false in more than 5 %, each
    # pair's own spread in no more.
    rng, common, alone = random.Random(0), 0, 0
    for _ in range(200):
        values = {
            str(m): by_seed(*(rng.gauss(0, 2 if m == 0 else 1) for _ in "123")) for m in range(9)
        }
        own = {m: paired(v, values["0"]) for m, v in values.items() if m != "0"}
        common += any(v.differs for v in verdicts(in_blocks(values, "0")).values())
        alone += any(v.differs for v in verdicts(own).values())
    assert alone <= 15 and 15 < common <= 50


def test_whether_differences_depend_on_the_condition_by_hand() -> None:
    # a - b is 1, 3 and 7, 5, of two seeds each: both conditions have the same spread. Their means 2
    # and 6 lie 2 around 4, the seeds' means are both 4, and each of the four is left with 1.
    # Halved, as of two methods: F = (4 2^2 / 2) / (4 1^2 / 2) of 1 and 1 degrees of freedom.
    base = {0: 10.0, 1: 10.0}
    conditions = [{"a": {0: 11.0, 1: 13.0}, "b": base}, {"a": {0: 17.0, 1: 15.0}, "b": base}]
    assert depends(conditions) == pytest.approx(f.sf(4, 1, 1))
    louder = [{m: {s: 3 * v for s, v in own.items()} for m, own in c.items()} for c in conditions]
    assert depends(louder) == pytest.approx(depends(conditions))
    # With 1, 3 and 8, 4: means 2, 6, seeds 4.5, 3.5, each left with 1.5. The spreads are as 1 to 2,
    # so Box's epsilon is (1 + 4)^2 / (2 (1 + 16)).
    conditions[1] = {"a": {0: 18.0, 1: 14.0}, "b": base}
    assert depends(conditions) == pytest.approx(f.sf(16 / 9, 25 / 34, 25 / 34))
    assert depends([{"a": {0: 1.0}, "b": {0: 2.0}}] * 2) is None
    assert depends(conditions[:1]) is None


@pytest.mark.parametrize(("of_seed", "first"), [(0.0, 1.0), (2.0, 1.0), (0.0, 5.0)])
def test_equal_gains_seldom_seem_to_depend_on_the_condition_and_unequal_ones_do(
    of_seed: float, first: float
) -> None:
    """Also where methods have luck with seeds under all conditions, and one condition is loud."""
    rng = random.Random(0)

    def study(gain: float) -> list[dict[str, dict[int, float]]]:
        luck = {(m, s): rng.gauss(0, of_seed) for m in "abcd" for s in range(3)}
        return [
            {
                m: {
                    s: 2 * (m == "b")
                    + gain * condition * (m == "c")
                    + luck[m, s]
                    + rng.gauss(0, first if condition == 0 else 1.0)
                    for s in range(3)
                }
                for m in "abcd"
            }
            for condition in range(5)
        ]

    same = sum(depends(study(0.0)) <= ALPHA for _ in range(100))
    assert same <= 12
    if first == 1:  # what is loud hides the rest
        assert sum(depends(study(1.5)) <= ALPHA for _ in range(30)) >= 27


def test_many_methods_tell_apart_what_a_pair_alone_would_not() -> None:
    rng = random.Random(0)
    values = {str(m): by_seed(*(50 + rng.gauss(0, 0.5) for _ in range(3))) for m in range(10)}
    values["9"] = {seed: value + 3 for seed, value in values["9"].items()}
    alone = verdicts({m: paired(own, values["0"]) for m, own in values.items() if m != "0"})
    together = verdicts(in_blocks(values, "0"))
    assert not any(verdict.differs for verdict in alone.values())
    assert [key for key, verdict in together.items() if verdict.differs] == ["9"]
