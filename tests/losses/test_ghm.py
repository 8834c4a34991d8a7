"""GHM worked by hand, its moving densities, and what must leave them alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from small import samples

from frcnn.losses import GHMC, GHMR, L1, CrossEntropy, Samples
from frcnn.losses.ghm import GradientDensity, window_beta
from frcnn.model.rpn import two_columns

# sigmoid(-ln 3) = 1/4: gradient norm 1/4 for background, 3/4 for an object.
QUARTER = -math.log(3)


def four() -> torch.Tensor:
    return two_columns(torch.full((4,), QUARTER)).requires_grad_()


def nothing(training: bool) -> Samples:
    """Samples for a density, which reads no more of them than whether its shares may move."""
    return samples(torch.zeros(0, 2), [], training=training)


# Six samples of two classes: label, weight, and the sigmoids of both classes.
LABELS = [0, 0, 0, 1, 1, 2]
WEIGHTS = [3.0, 1, 1, 2, 1, 1]
P = [[0.1, 0.25], [0.1, 0.1], [0.75, 0.1], [0.75, 0.1], [0.1, 0.25], [0.1, 0.5]]
# Norms |p - y|: [.1 .25] [.1 .1] [.75 .1] [.25 .1] [.9 .25] [.1 .5]. By weight there are R =
# 3 + 2 + 1 + 2 + 1 = 9 of .1, 3 + 2 + 1 = 6 of .25, and 1 each of .5, .75 and .9: N = 18.
R = {0.1: 9, 0.25: 6, 0.5: 1, 0.75: 1, 0.9: 1}


@pytest.mark.parametrize(
    ("num_bins", "nonempty", "width"),
    [
        (5, False, 5),  # [0, .2), [.2, .4), .. : a norm each
        (15, False, 15),  # bins 1, 3, 7, 11 and 13
        (15, True, 5),  # five of the fifteen are in use
    ],
)
def test_ghm_c_by_hand(num_bins: int, nonempty: bool, width: int) -> None:
    given = samples(torch.tensor([[0.5, *p] for p in P]).logit(), LABELS)
    given.weights = torch.tensor(WEIGHTS)
    # beta BCE of a norm g: N / (R M) and -log(1 - g).
    v = {g: 18 / (r * width) * -math.log(1 - g) for g, r in R.items()}
    expected = [
        (v[0.1] + v[0.25]) / 2,
        (v[0.1] + v[0.1]) / 2,
        (v[0.75] + v[0.1]) / 2,
        (v[0.25] + v[0.1]) / 2,
        (v[0.9] + v[0.25]) / 2,
        (v[0.1] + v[0.5]) / 2,
    ]
    assert GHMC(num_bins, 0.75, nonempty)(given).tolist() == pytest.approx(expected, rel=1e-5)


# Six positives of three classes among two negatives; errors in mu. Pythagorean triples: at d =
# 5/12, 3/4, 4/3, 12/5 mu the norm d / sqrt(d^2 + mu^2) is 5/13, 3/5, 4/5, 12/13 and
# ASL1 = sqrt(d^2 + mu^2) - mu is 1/12, 1/4, 2/3, 8/5 mu.
ERRORS = [
    [0, 0, 0, 0],
    [5 / 12, -5 / 12, 0, 0],
    [3 / 4, 5 / 12, 0, 0],
    [4 / 3, 3 / 4, -5 / 12, 0],
    [-12 / 5, 0, 3 / 4, 5 / 12],
    [0, 0, -3 / 4, 5 / 12],
]


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_ghm_r_by_hand(weight: float) -> None:
    # Of 24 norms 12 are in [0, 1/4), 6 in [1/4, 1/2), 4 in [1/2, 3/4) and 2 in [3/4, 1):
    # beta = 24 / (4 R) = 1/2, 1, 3/2, 3. beta ASL1 / mu of the four: 1/12, 3/8, 2, 24/5.
    mu = 0.02
    deltas = mu * torch.tensor(ERRORS, dtype=torch.float64)
    given = samples(torch.zeros(8, 4), [1, 2, 0, 3, 1, 0, 2, 1], deltas)
    expected = [
        0,
        (1 / 12 + 1 / 12) / 4,
        (3 / 8 + 1 / 12) / 4,
        (2 + 3 / 8 + 1 / 12) / 4,
        (24 / 5 + 3 / 8 + 1 / 12) / 4,
        (3 / 8 + 1 / 12) / 4,
    ]
    value = GHMR(mu, num_bins=4, weight=weight)(given) / (weight * mu)
    assert value.tolist() == pytest.approx(expected)


def test_the_gradient_of_ghm_r_is_beta_times_the_norm() -> None:
    deltas = torch.randn(5, 4, dtype=torch.float64).requires_grad_()
    loss = GHMR(0.02, num_bins=1)  # beta is 1 in a single bin
    loss(samples(torch.zeros(5, 2), [1] * 5, deltas)).sum().backward()
    d = deltas.detach()
    torch.testing.assert_close(deltas.grad, d / (d**2 + 0.02**2).sqrt() / 4)


@pytest.mark.parametrize(("weight", "share"), [(1.0, 1 / 40), (10.0, 1 / 4), (40.0, 1.0)])
def test_far_above_mu_its_gradient_is_a_share_of_l1s(weight: float, share: float) -> None:
    # All errors are in the last of 10 bins: beta is 1/10, and the loss is a mean over four deltas.
    deltas = torch.tensor([[1.0, -2, 3, -1], [2, 5, -1, 1]], requires_grad=True)
    given = samples(torch.zeros(2, 2), [1, 1], deltas)
    (found,), (of_l1,) = (
        torch.autograd.grad(loss(given).sum(), deltas)
        for loss in (GHMR(0.02, num_bins=10, weight=weight), L1())
    )
    torch.testing.assert_close(found, share * of_l1, atol=0, rtol=1e-3)


def test_on_a_flat_distribution_it_is_the_plain_loss() -> None:
    # Norms 1/20, 3/20, .. 19/20: as many in each of ten, five or two bins.
    p = torch.arange(0.05, 1, 0.1, dtype=torch.float64)
    given = samples(two_columns((p / (1 - p)).log()), [0] * 10)
    for num_bins in (10, 5, 2, 1):
        torch.testing.assert_close(GHMC(num_bins)(given), CrossEntropy()(given))


def test_flat_over_three_classes_it_is_their_mean() -> None:
    # Two samples of three classes, a norm in each of six bins: beta is 1.
    x = torch.tensor([[1 / 12, 3 / 12, 5 / 12], [7 / 12, 9 / 12, 11 / 12]]).logit()
    value = GHMC(6)(samples(torch.cat([torch.zeros(2, 1), x], 1), [0, 0]))
    torch.testing.assert_close(value, F.softplus(x).mean(1))


def test_every_bin_in_use_has_the_same_part_of_the_weights() -> None:
    norms = torch.rand(500, dtype=torch.float64) ** 3
    beta = GradientDensity(10, 0.0, False)(norms, torch.ones(500), nothing(training=False))
    parts = torch.bincount((norms * 10).long(), beta, 10)
    torch.testing.assert_close(parts, torch.full((10,), 50.0, dtype=torch.float64))


def test_a_weight_counts_as_so_many_examples() -> None:
    density = GradientDensity(4, 0.0, False)
    norms, weights = torch.tensor([0.1, 0.1, 0.6, 0.9]), torch.tensor([3.0, 1.0, 1.0, 2.0])
    weighted = density(norms, weights, nothing(training=False))
    repeated = norms.repeat_interleave(weights.long())
    one_each = density(repeated, torch.ones(7), nothing(training=False))
    torch.testing.assert_close(weighted.repeat_interleave(weights.long()), one_each)


def test_shares_move_with_momentum_from_the_first_batch_on() -> None:
    density = GradientDensity(2, 0.75, False)
    one = torch.ones(4)
    density(torch.tensor([0.1, 0.1, 0.1, 0.9]), one, nothing(training=True))
    assert density.shares.tolist() == [0.75, 0.25]
    beta = density(torch.full((4,), 0.1), one, nothing(training=True))
    # S <- m S + (1 - m) R: 3/4 * 3/4 + 1/4 * 1, and an empty bin decays to 3/4 * 1/4.
    assert density.shares.tolist() == [0.8125, 0.1875]
    assert beta.tolist() == pytest.approx([1 / (2 * 0.8125)] * 4)
    # Eight of the same are no other distribution than four: 3/4 * 0.8125 + 1/4.
    twice = density(torch.full((8,), 0.1), torch.ones(8), nothing(training=False))
    assert twice.tolist() == pytest.approx([1 / (2 * 0.859375)] * 8)


def test_bins_in_use_are_those_of_this_batch() -> None:
    density = GradientDensity(4, 0.75, True)
    density(torch.tensor([0.1, 0.1, 0.1, 0.9]), torch.ones(4), nothing(training=True))
    # One bin of two is in use now, and the other still has its share: 3/4 * 3/4 + 1/4 is left.
    beta = density(torch.full((4,), 0.1), torch.ones(4), nothing(training=True))
    assert beta.tolist() == pytest.approx([1 / (1 * 0.8125)] * 4)


def test_only_the_training_pass_moves_them() -> None:
    loss, labels = GHMC(4), [0, 0, 0, 1]
    loss(samples(four(), labels))  # a preview or a validation
    assert loss.density.shares.tolist() == [0, 0, 0, 0]
    loss(samples(four(), labels, training=True))
    assert loss.density.shares.tolist() == [0, 0.75, 0, 0.25]
    before = loss.density.shares.clone()
    loss(samples(torch.zeros(0, 2, requires_grad=True), [], training=True))
    assert torch.equal(loss.density.shares, before)


@pytest.mark.parametrize("make", [GHMC, GHMR])
def test_a_state_that_is_loaded_goes_on_where_it_was(make) -> None:
    first, second = make(), make()
    g = torch.Generator().manual_seed(0)

    def batch():
        logits, deltas = (torch.randn(8, n, generator=g).requires_grad_() for n in (2, 4))
        return samples(logits, [1] * 8, deltas, training=True)

    first(batch())
    second.load_state_dict(first.state_dict())
    given = batch()
    given.training = False
    assert torch.equal(first(given), second(given))
    assert not torch.equal(first(given), make()(given))


@pytest.mark.parametrize(
    "shares",
    [
        "x", None, 0.5, [0.25] * 4, torch.ones(3) / 3, torch.ones(4, 1) / 4, torch.tensor(0.25),
        torch.tensor([0.5, 0.5, 0, math.nan]), torch.tensor([math.inf, 0, 0, 0]),
        torch.tensor([1.5, -0.5, 0, 0]),
    ],
)  # fmt: skip
def test_shares_of_other_hands_are_refused(shares: object) -> None:
    loss = GHMC(num_bins=4)
    with pytest.raises((ValueError, RuntimeError), match="4 finite numbers >= 0|density.shares"):
        loss.load_state_dict({"density.shares": shares})
    loss.load_state_dict(GHMC(num_bins=4).state_dict())


def test_a_norm_of_one_is_in_the_last_bin_in_every_precision() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = torch.tensor([[0.0, 200.0]], dtype=dtype)
        assert GHMC(30)(samples(logits, [0])).tolist() == pytest.approx([200 / 30])


@pytest.mark.parametrize("arguments", [{"num_bins": 0}, {"momentum": 1.0}, {"momentum": -0.1}])
@pytest.mark.parametrize("make", [GHMC, GHMR])
def test_arguments_out_of_range(make, arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must be"):
        make(**arguments)


def test_the_exact_window_by_hand() -> None:
    # Norms .05, .3, .52, .6, .95 that count 1, 2, 1, 1, 3, window .4. [.1, .5) holds .3 alone;
    # [.32, .72) and [.4, .8) hold .52 and .6. At the ends of [0, 1] only the part inside counts:
    # [0, .25) holds .05 in a length of .25, [.75, 1] holds .95 in .25.
    norms = torch.tensor([[0.05, 0.3], [0.52, 0.6], [0.95, 0.95]]).double()
    weights = torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.5, 1.5]]).double()
    found = window_beta(norms, weights, 0.4, samples(torch.zeros(1, 2), [0]))
    expected = [8 * 0.25 / 1, 8 * 0.4 / 2, 8 * 0.4 / 2, 8 * 0.4 / 2, 8 * 0.25 / 3, 8 * 0.25 / 3]
    assert found.flatten().tolist() == pytest.approx(expected)


def test_the_exact_window_against_loops() -> None:
    g = torch.Generator().manual_seed(2)
    for _ in range(50):
        norms, weights = torch.rand(2, 30, generator=g, dtype=torch.float64)
        found = window_beta(norms, weights, 0.1, samples(torch.zeros(1, 2), [0])).tolist()
        for own, beta in zip(norms.tolist(), found, strict=True):
            low, high = own - 0.05, own + 0.05
            pairs = zip(norms.tolist(), weights.tolist(), strict=True)
            held = sum(count for norm, count in pairs if low <= norm < high)
            length = min(high, 1) - max(low, 0)
            assert beta == pytest.approx(weights.sum().item() * length / held)


def test_with_an_exact_window_no_state_moves() -> None:
    loss = GHMC(exact_window=True)
    loss(samples(torch.randn(8, 3), [0, 1, 2, 0] * 2, training=True))
    assert not loss.density.shares.any()
