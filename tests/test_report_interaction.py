"""Whether differences depend on the condition, and which methods are about equally steady."""

import random

import pytest
from scipy.stats import f

from experiments.report.interaction import depends, steady
from experiments.report.verdicts import ALPHA


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


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
