"""Learning rate factors worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frcnn.training.schedules import Cosine, MultiStep, warmup


def test_warmup_is_linear_and_ends_at_its_last_step() -> None:
    assert [warmup(step, 4, 0.2) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert warmup(0, 0, 0.2) == 1


def test_cosine_by_hand() -> None:
    cosine = Cosine(warmup_steps=0, warmup_factor=0.1, final_factor=0.0)
    # cos(60 degrees) = 1/2
    assert [cosine(step, 12) for step in (0, 4, 6, 12)] == pytest.approx([1, 0.75, 0.5, 0])


def test_cosine_ends_at_its_final_factor_and_is_warmed_up_by_a_product() -> None:
    cosine = Cosine(warmup_steps=8, warmup_factor=0.5, final_factor=0.2)
    assert cosine(12, 12) == pytest.approx(0.2)
    assert cosine(4, 12) == pytest.approx((0.5 + 0.5 * 4 / 8) * (0.2 + 0.8 * 0.75))


def test_multistep_falls_at_its_milestones() -> None:
    steps = MultiStep(warmup_steps=2, warmup_factor=0.5, milestones=[0.5, 0.75], gamma=0.1)
    assert [steps(step, 8) for step in range(8)] == pytest.approx(
        [0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@given(st.integers(1, 500), st.data())
def test_without_warmup_no_schedule_ever_rises(total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    final = data.draw(st.floats(0, 1))
    for schedule in (Cosine(0, 0.0, final), MultiStep(0, 0.0, [0.3, 0.6], final)):
        assert 0 <= schedule(step + 1, total) <= schedule(step, total) <= 1
