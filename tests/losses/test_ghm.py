"""GHM worked by hand, its moving densities, and what must leave them alone."""

import math

import pytest
import torch
from small import samples

from frcnn.losses import GHMC, GHMR, CrossEntropy
from frcnn.losses.ghm import GradientDensity
from frcnn.model.rpn import two_columns

# sigmoid(-ln 3) = 1/4: gradient norm 1/4 for background, 3/4 for an object.
QUARTER = -math.log(3)


def four(learn: bool = True) -> torch.Tensor:
    return two_columns(torch.full((4,), QUARTER)).requires_grad_(learn)


@pytest.mark.parametrize(
    ("num_bins", "nonempty", "beta"),
    [
        (2, False, (2 / 3, 2)),  # N / (R M) = 4 / (3 * 2) and 4 / (1 * 2)
        (4, False, (1 / 3, 1)),
        (4, True, (2 / 3, 2)),  # two of the four bins are in use
    ],
)
def test_ghm_c_by_hand(num_bins: int, nonempty: bool, beta: tuple[float, float]) -> None:
    value = GHMC(num_bins, 0.75, nonempty)(samples(four(), [0, 0, 0, 1]))
    easy, hard = beta[0] * math.log(4 / 3), beta[1] * math.log(4)
    assert value.tolist() == pytest.approx([easy] * 3 + [hard], rel=1e-5)


def test_ghm_r_by_hand() -> None:
    # d = 3/4 mu: ASL1 = mu / 4 and norm 3/5; three zeros beside it. Two bins: beta = 4 / (1 * 2).
    mu = 0.02
    deltas = torch.tensor([[0.75 * mu, 0, 0, 0]])
    value = GHMR(mu, num_bins=2)(samples(torch.zeros(1, 2), [1], deltas))
    assert value.tolist() == pytest.approx([2 * mu / 4 / 4], rel=1e-5)
    weighed = GHMR(mu, num_bins=2, weight=10.0)(samples(torch.zeros(1, 2), [1], deltas))
    assert weighed.tolist() == pytest.approx([10 * mu / 8], rel=1e-5)


def test_the_gradient_of_ghm_r_is_beta_times_the_norm() -> None:
    deltas = torch.randn(5, 4, dtype=torch.float64).requires_grad_()
    loss = GHMR(0.02, num_bins=1)  # beta is 1 in a single bin
    loss(samples(torch.zeros(5, 2), [1] * 5, deltas)).sum().backward()
    d = deltas.detach()
    torch.testing.assert_close(deltas.grad, d / (d**2 + 0.02**2).sqrt() / 4)


def test_on_a_flat_distribution_it_is_the_plain_loss() -> None:
    # Norms 1/20, 3/20, .. 19/20: as many in each of ten, five or two bins.
    p = torch.arange(0.05, 1, 0.1, dtype=torch.float64)
    given = samples(two_columns((p / (1 - p)).log()), [0] * 10)
    for num_bins in (10, 5, 2, 1):
        torch.testing.assert_close(GHMC(num_bins)(given), CrossEntropy()(given))


def test_every_bin_in_use_has_the_same_part_of_the_weights() -> None:
    norms = torch.rand(500, dtype=torch.float64) ** 3
    beta = GradientDensity(10, 0.0, False)(norms, torch.ones(500), learn=False)
    parts = torch.bincount((norms * 10).long(), beta, 10)
    torch.testing.assert_close(parts, torch.full((10,), 50.0, dtype=torch.float64))


def test_a_weight_counts_as_so_many_examples() -> None:
    density = GradientDensity(4, 0.0, False)
    norms, weights = torch.tensor([0.1, 0.1, 0.6, 0.9]), torch.tensor([3.0, 1.0, 1.0, 2.0])
    weighted = density(norms, weights, learn=False)
    repeated = norms.repeat_interleave(weights.long())
    one_each = density(repeated, torch.ones(7), learn=False)
    torch.testing.assert_close(weighted.repeat_interleave(weights.long()), one_each)


def test_shares_move_with_momentum_from_the_first_batch_on() -> None:
    density = GradientDensity(2, 0.75, False)
    one = torch.ones(4)
    density(torch.tensor([0.1, 0.1, 0.1, 0.9]), one, learn=True)
    assert density.shares.tolist() == [0.75, 0.25]
    beta = density(torch.full((4,), 0.1), one, learn=True)
    # S <- m S + (1 - m) R: 3/4 * 3/4 + 1/4 * 1, and an empty bin decays to 3/4 * 1/4.
    assert density.shares.tolist() == [0.8125, 0.1875]
    assert beta.tolist() == pytest.approx([1 / (2 * 0.8125)] * 4)
    # Eight of the same are no other distribution than four: 3/4 * 0.8125 + 1/4.
    twice = density(torch.full((8,), 0.1), torch.ones(8), learn=False)
    assert twice.tolist() == pytest.approx([1 / (2 * 0.859375)] * 8)


def test_only_a_pass_with_gradient_moves_them() -> None:
    loss, labels = GHMC(4), [0, 0, 0, 1]
    with torch.no_grad():
        loss(samples(four(), labels))
    with torch.inference_mode():
        loss(samples(four(), labels))
    loss(samples(four(learn=False), labels))
    assert loss.state_dict()["shares"].tolist() == [0, 0, 0, 0]
    loss(samples(four(), labels))
    assert loss.state_dict()["shares"].tolist() == [0, 0.75, 0, 0.25]
    before = loss.state_dict()["shares"].clone()
    loss(samples(torch.zeros(0, 2, requires_grad=True), []))
    assert torch.equal(loss.state_dict()["shares"], before)


@pytest.mark.parametrize("make", [GHMC, GHMR])
def test_a_state_that_is_loaded_goes_on_where_it_was(make) -> None:
    first, second = make(), make()
    g = torch.Generator().manual_seed(0)

    def batch():
        logits, deltas = (torch.randn(8, n, generator=g).requires_grad_() for n in (2, 4))
        return samples(logits, [1] * 8, deltas)

    first(batch())
    second.load_state_dict(first.state_dict())
    given = batch()
    assert torch.equal(first(given), second(given))
    assert not torch.equal(first(given), make()(given))


@pytest.mark.parametrize(
    "shares",
    [
        "x", None, 0.5, [0.25] * 4, torch.ones(3) / 3, torch.ones(4, 1) / 4, torch.tensor(0.25),
        torch.tensor([0.5, 0.5, 0, math.nan]), torch.tensor([math.inf, 0, 0, 0]),
        torch.tensor([1.5, -0.5, 0, 0]), torch.tensor([1, 0, 0, 0]), torch.eye(4)[0].to_sparse(),
    ],
)  # fmt: skip
def test_shares_of_other_hands_are_refused(shares: object) -> None:
    loss = GHMC(num_bins=4)
    with pytest.raises(ValueError, match="are not 4 finite numbers >= 0"):
        loss.load_state_dict({"shares": shares})
    loss.load_state_dict(GHMC(num_bins=4).state_dict())


def test_a_norm_of_one_is_in_the_last_bin_in_every_precision() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = torch.tensor([[0.0, 200.0]], dtype=dtype)
        assert GHMC(30)(samples(logits, [0])).tolist() == pytest.approx([200 / 30])


@pytest.mark.parametrize("arguments", [{"num_bins": 0}, {"momentum": 1.0}, {"momentum": -0.1}])
@pytest.mark.parametrize("make", [GHMC, GHMR])
def test_arguments_out_of_range(make, arguments: dict) -> None:
    with pytest.raises(ValueError, match="num_bins must be"):
        make(**arguments)
