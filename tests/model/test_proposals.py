"""The filter of proposals picks what torchvision's picks, in the same order."""

from collections.abc import Sequence

import pytest
import torch
from pretend_gpu import pretend_gpu, to_gpu, to_host
from small import quick
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork

from frcnn.model.proposals import ProposalFilter
from samplers import suppression

SIZES = [(90, 120), (100, 80), (64, 64)]
LEVELS = [900, 300, 90, 6]


def cases() -> list[tuple[Tensor, Tensor]]:
    """Boxes and logits: crowded, with ties and saturated scores, tiny boxes, an empty image."""
    found = []
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        n, spread = sum(LEVELS), (200, 40)[seed % 2]
        corner = torch.rand(3, n, 2, generator=g) * spread - 20
        side = torch.rand(3, n, 2, generator=g).square() * 40
        logits = torch.randn(3, n, generator=g) * 8
        if seed >= 2:  # ties, in the logits and after the sigmoid
            logits = logits.round()
            logits[:, ::7] = 60 + torch.rand(3, n, generator=g)[:, ::7]
        if seed >= 3:
            side[:, ::5] = 1e-4
        if seed >= 4:
            side[1] = 0
            corner[2, ::2] = corner[2, :1]
        found.append((torch.cat([corner, corner + side], 2), logits))
    return found


@pytest.fixture(params=[(2000, 300), (100, 5)], ids=str)
def network(request: pytest.FixtureRequest) -> RegionProposalNetwork:
    """torchvision's, with the numbers of candidates and of proposals."""
    rpn = quick().rpn
    rpn._pre_nms_top_n["training"], rpn._post_nms_top_n["training"] = request.param
    rpn.score_thresh = 0.2
    return rpn


def filter_of(rpn: RegionProposalNetwork) -> ProposalFilter:
    numbers = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
    return ProposalFilter(*numbers, rpn.nms_thresh, rpn.score_thresh, rpn.min_size)


def joined_in_fixed_order(kept: Sequence[Tensor], scores: Tensor) -> Tensor:
    rows = torch.cat([*kept, torch.zeros(0, dtype=torch.int64)]).sort().values
    return rows[scores[rows].argsort(descending=True, stable=True)]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_as_torchvision(network: RegionProposalNetwork, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for boxes, logits in cases():
            expected, _ = RegionProposalNetwork.filter_proposals(
                network, boxes, logits.flatten(), SIZES, LEVELS
            )
            found = filter_of(network).ask(boxes, logits, SIZES, LEVELS)()
            assert [*map(len, found)] == [*map(len, expected)]
            assert all(map(torch.equal, found, expected))
    finally:
        torch.set_num_threads(before)


# With 64 columns a block and one round a list has many blocks and needs further attempts.
@pytest.mark.parametrize(("block", "rounds"), [(512, 16), (64, 1)])
def test_a_gpu_gives_the_same(
    network: RegionProposalNetwork, block: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suppression, "BLOCK", block)
    monkeypatch.setattr(suppression, "ROUNDS", rounds)
    # A GPU suppresses each level by itself, and its order of ties is fixed.
    monkeypatch.setattr("frcnn.model.proposals.MOVED_APART", 0)
    monkeypatch.setattr("frcnn.model.proposals._joined", joined_in_fixed_order)
    given, reads = cases()[1::2], 0  # the crowded ones
    for boxes, logits in given:
        expected = filter_of(network).ask(boxes, logits, SIZES, LEVELS)()
        with pretend_gpu() as waits:
            found = filter_of(network).ask(to_gpu(boxes), to_gpu(logits), SIZES, LEVELS)()
        assert all(map(torch.equal, to_host(found), expected))
        reads += waits.total()
    assert reads == len(given) if rounds > 1 else len(given) < reads <= 3 * len(given)
