"""Dynamic smooth L1 worked by hand, and its state."""

import pytest
import torch
from small import samples

from frcnn.losses import DynamicSmoothL1, Samples, SmoothL1


def positives(*errors: float, images: int = 1, training: bool = True) -> Samples:
    """Positives whose targets dx and dy have this mean size; widths and heights do not count."""
    given = samples(torch.zeros(len(errors), 2), [1] * len(errors), training=training)
    given.targets = torch.tensor([[1.5 * e, -0.5 * e, 9, 9] for e in errors]).reshape(-1, 4)
    # A last image without positives does not count.
    given.image, given.num_images = torch.arange(len(errors)) % images, images + 1
    return given


def test_beta_is_the_median_of_the_recorded_errors() -> None:
    loss = DynamicSmoothL1(beta=1.0, top=2, interval=2)
    loss(positives(0.5, 0.2, 0.1))  # the second smallest: .2
    assert loss.now == 1
    loss(positives(0.7, 0.1, 0.3, 0.4, 0.9, images=2))  # the fourth smallest: .7
    assert loss.now.item() == pytest.approx(0.45)  # the median of two is their mean
    loss(positives())  # a step without positives is no step
    loss(positives(0.6))  # fewer than two: the largest
    loss(positives(3.0, 5.0))
    assert loss.now.item() == 1  # (.6 + 5) / 2 is above the first beta
    for _ in range(2):
        loss(positives(0.0, 0.0))
    assert loss.now.item() == 1  # a median of 0 is no beta


def test_values_are_those_of_smooth_l1_with_this_beta() -> None:
    loss = DynamicSmoothL1(beta=1.0, top=1, interval=1)
    given = positives(0.25, 0.5, 1.0, training=False)
    given.deltas = torch.randn(3, 4)
    assert loss(given).equal(SmoothL1(1.0)(given))
    assert loss.now == 1  # previews and validation move nothing
    loss(positives(0.25))
    torch.testing.assert_close(loss(given), SmoothL1(0.25)(given))


def test_an_update_leaves_the_gradient_of_its_step() -> None:
    given = positives(0.25)
    given.deltas = torch.full((1, 4), 0.5).requires_grad_()
    given.targets = torch.zeros(1, 4) + 0.25
    loss = DynamicSmoothL1(beta=1.0, top=1, interval=1)
    loss(given).sum().backward()
    assert loss.now == 0.25
    assert given.deltas.grad.tolist() == [[0.25] * 4]  # the difference over the beta of 1


def test_two_processes_are_one() -> None:
    whole = DynamicSmoothL1(top=2, interval=1)
    whole(positives(0.1, 0.2, 0.3, 0.4, 0.5, images=2))
    part = positives(0.1, 0.3)
    part.total = lambda value: value + 1
    part.gather = lambda rows: (torch.cat([rows, torch.tensor([0.2, 0.4, 0.5])]), slice(0, 2))
    own = DynamicSmoothL1(top=2, interval=1)
    own(part)
    assert own.now.item() == pytest.approx(whole.now.item()) == pytest.approx(0.4)


def test_a_saved_state_goes_on() -> None:
    first, second = (DynamicSmoothL1(top=1, interval=3) for _ in range(2))
    for error in (0.5, 0.3):
        first(positives(error))
    second.load_state_dict(first.state_dict())
    for loss in (first, second):
        loss(positives(0.4))
        assert loss.now.item() == pytest.approx(0.4)


@pytest.mark.parametrize(
    "changed", [{"now": 0.0}, {"now": 2.0}, {"steps": 100}, {"errors": [-1.0] * 100}]
)
def test_states_of_other_hands_are_refused(changed: dict) -> None:
    state = DynamicSmoothL1().state_dict()
    state |= {key: torch.tensor(value) for key, value in changed.items()}
    with pytest.raises(ValueError, match="beta is|batches|errors"):
        DynamicSmoothL1().load_state_dict(state)


@pytest.mark.parametrize("argument", [{"beta": 0.0}, {"top": 0}, {"interval": 0}])
def test_arguments_out_of_range(argument: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(argument))} must be"):
        DynamicSmoothL1(**argument)
