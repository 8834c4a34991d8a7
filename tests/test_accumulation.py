"""Two batches of 2 images in one optimizer step against one batch of 4."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import lines, small_backbone, small_network, tiny
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from frcnn.build import dataset, detector
from frcnn.data import Batch
from frcnn.data.batching import collate
from frcnn.errors import UserError
from frcnn.model import backbones
from frcnn.parallel.group import Exchange, SingleProcess
from frcnn.tracking.tracker import NullTracker
from frcnn.training.accumulation import Lockstep, Replay, exchanges
from frcnn.training.loop import Engine, Options
from frcnn.training.resume import _steps
from frcnn.training.run import run

STATISTICS = [
    ("sampler=pisa", "loss=ghm_c"),
    ("sampler=ohem", "loss=ghm", "box_loss=ghm_r"),
    ("sampler=pisa", "loss.rcnn.class_weights=batch", "loss.rcnn.keep_scale=true"),
    ("sampler=guided_all",),
]


class Training:
    """An engine on the tiny network with fixed BatchNorm, and four images."""

    def __init__(self, folder: Path, stats: str, *overrides: str) -> None:
        config, _ = tiny(*overrides, "data.num_objects=[0,3]")
        data = dataset(config["data"], "train")
        torch.manual_seed(0)
        self.detector = detector(config, data.num_classes).train()
        options = Options(
            seed=0, accumulate=2, accumulate_stats=stats, clip_norm=None, log_every=1,
            sampling_every=2, device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        optimizer = torch.optim.SGD(self.detector.parameters(), 0.02)
        self.engine = Engine(
            self.detector, optimizer, lambda step, total: 1.0, 9, NullTracker(), folder, options
        )
        self.images = [data[0, index] for index in range(4)]

    def batch(self, *indices: int) -> Batch:
        return collate([self.images[index] for index in indices])

    def steps(self, *groups: Sequence[int]) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        """Terms of two steps on these batches, and the weights and states after them."""
        terms = [self.engine.train_step([self.batch(*g) for g in groups]) for _ in range(2)]
        return terms, self.detector.state_dict() | self.detector.sites.state_dict()


@pytest.fixture(autouse=True)
def fixed_norm() -> Iterator[None]:
    """Else BatchNorm's statistics would be over another number of images."""
    with small_network(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            backbones, "resnet_fpn_backbone", lambda **kept: small_backbone(FrozenBatchNorm2d)
        )
        yield


def assert_equal(
    one: tuple[list[dict[str, float]], dict[str, Tensor]],
    two: tuple[list[dict[str, float]], dict[str, Tensor]],
) -> None:
    for first, second in zip(one[0], two[0], strict=True):
        assert second == pytest.approx(first, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(two[1], one[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        ("sampler=random",),
        ("sampler=ohem",),
        ("sampler=all", "loss=focal"),
        ("sampler=random", "loss.rcnn.per=positive", "box_loss.rcnn.per=coordinate"),
        ("sampler=random", "loss.rcnn.per=64"),
        ("model=retinanet_resnet18_fpn",),
        ("model=retinanet_resnet18_fpn", "weigher=moving_positives"),
    ],
)
def test_normalizers_count_the_step(tmp_path: Path, case: tuple[str, ...]) -> None:
    one = Training(tmp_path, "batch", *case).steps((0, 1, 2, 3))
    # One image has most of the objects: the mean of two batches' terms would be another number.
    assert_equal(one, Training(tmp_path, "batch", *case).steps((0,), (1, 2, 3)))


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_over_the_step(tmp_path: Path, case: tuple[str, ...]) -> None:
    one = Training(tmp_path, "step", *case).steps((0, 1, 2, 3))
    assert_equal(one, Training(tmp_path, "step", *case).steps((0,), (1, 2, 3)))
    by_batch = Training(tmp_path, "batch", *case).steps((0,), (1, 2, 3))
    assert by_batch[0][1]["loss"] != pytest.approx(one[0][1]["loss"], rel=1e-4)


def test_carl_takes_its_mean_over_the_step(tmp_path: Path) -> None:
    """The values are exact; of the mean's gradient a batch knows its own terms only."""
    one = Training(tmp_path, "step", "box_loss=carl").steps((0, 1, 2, 3))
    two = Training(tmp_path, "step", "box_loss=carl").steps((0,), (1, 2, 3))
    terms = [{k: v for k, v in steps[0][0].items() if k != "grad_norm"} for steps in (one, two)]
    assert terms[1] == pytest.approx(terms[0], rel=1e-5)


def test_a_run_resumes_with_statistics_over_the_same_part_of_a_step() -> None:
    old = {"batch_size": 2, "accumulate": 2}  # a checkpoint of an earlier version
    assert _steps(old) == _steps(old | {"accumulate_stats": "batch"})
    assert _steps(old) != _steps(old | {"accumulate_stats": "step"})
    one = {"batch_size": 2, "accumulate": 1}
    assert _steps(one) == _steps(one | {"accumulate_stats": "step"})


@pytest.mark.parametrize("stats", ["batch", "step"])
def test_an_observed_step_is_recorded_once(tmp_path: Path, stats: str) -> None:
    run(*tiny("trainer.accumulate=2", f"trainer.accumulate_stats={stats}", "trainer.max_steps=2",
              "sampler/rpn=ohem", "trainer.sampling_every=1"), tmp_path)  # fmt: skip
    for site in ("rpn", "rcnn"):
        key = f"sampling/{site}/positives_per_image"
        assert [record["step"] for record in lines(tmp_path) if key in record] == [1, 2]


class Noisy(nn.Module):
    """A network that draws, moves BatchNorm and exchanges numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.sites = nn.BatchNorm1d(1), nn.ModuleDict()
        self.drawn: list[float] = []

    def go(self, number: int, given: Exchange) -> Tensor:
        torch.manual_seed(number)
        self.norm(torch.arange(3.0)[:, None] * (number + 1))
        before = torch.rand(())
        total = given.total(before)
        self.drawn += [before.item(), total.item(), torch.rand(()).item()]
        table, own = given.gather(torch.full((number + 1,), float(number)))
        assert table[own].tolist() == [number] * (number + 1) and len(table) == 6
        return given.step_total(torch.tensor(float(number)))


def passes(net: Noisy) -> list[Callable[[Exchange], Any]]:
    return [lambda given, n=n: net.go(n, given) for n in range(3)]


def test_the_first_pass_leaves_no_trace_and_draws_what_the_second_does() -> None:
    net, alone = Noisy(), Noisy()
    counts = [
        net.go(n, given).item()
        for n, given in enumerate(exchanges(passes(net), net, SingleProcess(), "step"))
    ]
    assert counts == [3.0, 3.0, 3.0]
    first, second = sorted(net.drawn[:9]), sorted(net.drawn[9:])
    assert first == second
    for number in range(3):
        torch.manual_seed(number)
        alone.norm(torch.arange(3.0)[:, None] * (number + 1))
        draws = [torch.rand(()).item(), torch.rand(()).item()]
        assert net.drawn[9 + 3 * number :: 2][:2] == draws
    assert torch.equal(net.norm.running_mean, alone.norm.running_mean)
    assert int(net.norm.num_batches_tracked) == 3


def test_an_error_in_one_batch_ends_the_first_pass() -> None:
    def fails(given: Exchange) -> None:
        given.total(torch.ones(()))
        raise UserError("no such image")

    net = Noisy()
    with pytest.raises(UserError, match="no such image"):
        Lockstep(3, net, SingleProcess()).run([passes(net)[0], fails, passes(net)[2]])


@pytest.mark.parametrize("stats", ["batch", "step"])
@pytest.mark.parametrize("odd", [0, 1])
def test_batches_that_exchange_different_numbers_of_values(stats: str, odd: int) -> None:
    """An error, where threads would wait for each other forever."""

    def forward(number: int) -> Callable[[Exchange], Any]:
        def calls(given: Exchange) -> None:
            for _ in range(2 if number == odd else 1):
                given.step_total(torch.ones(()))

        return calls

    with pytest.raises(UserError, match="exchange different numbers of values"):
        list(exchanges([forward(0), forward(1)], Noisy(), SingleProcess(), stats))


def test_the_gradient_through_a_total_stands_for_all_shares() -> None:
    """Four equal shares x = 1 of T = 4, each with the term T^2: d/dx of their sum is 4 * 2 T."""
    x = torch.tensor(1.0, requires_grad=True)
    total = Replay([torch.tensor(4.0)], 0, shares=4).total(x)
    assert total.item() == 4
    total.square().backward()
    assert x.grad.item() == 4 * 2 * 4


def test_each_site_and_each_batch_of_a_step_has_a_stream_of_its_own(tmp_path: Path) -> None:
    def seeds(stats: str, number: int) -> list[int | None]:
        training = Training(tmp_path, stats)
        training.engine._prepare_sites(number, training.engine.processes, lambda *_: None)
        return [site.seed for site in training.detector.sites.values()]

    first, second = seeds("batch", 0), seeds("batch", 1)
    assert len({*first, *second}) == 4 and seeds("batch", 0) == first
    # Batches that share their statistics draw alike, as processes do.
    assert seeds("step", 0) == seeds("step", 1)
