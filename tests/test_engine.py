"""The loop on a network of one weight, whose steps can be worked by hand; devices and precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from frcnn.data import AspectGroupedBatches, make_loader
from frcnn.errors import ConfigError, UserError
from frcnn.parallel.device import choose_device, choose_precision
from frcnn.training.loop import Engine, Options, Window, grouped, step_seed

IMAGES = 6


class Numbers(Dataset):
    """Image k is one pixel of value 51 * k / 255 = k / 5."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = key
        return torch.full((3, 1, 1), 51 * index, dtype=torch.uint8), {
            "image_id": index,
            "epoch": epoch,
        }


class Line(nn.Module):
    """Loss w * mean(image value) + 0.5 over a step of ``batches``: each batch gives its share."""

    batches = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(0.5)
        self.sites = nn.ModuleDict()
        self.seen: list[tuple[int, int]] = []
        self.noise: list[Tensor] = []

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        noise = self.dropout(torch.ones(8))
        if torch.is_grad_enabled():  # not in the first pass over several batches of a step
            self.seen += [(target["epoch"], target["image_id"]) for target in targets]
            self.noise.append(noise)
        mean = torch.stack([image[0, 0, 0] for image in images]).mean()
        return {
            "loss_a": self.weight * mean / self.batches,
            "loss_b": torch.tensor(0.5) / self.batches,
        }


class Records:
    """In the place of a tracker."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def log(self, record: dict[str, Any]) -> None:
        self.lines.append(record)


class Bench:
    """An engine with its loader over ``Numbers``."""

    def __init__(
        self, folder: Path, accumulate: int = 1, total: int = 6, batch: int = 2, lr: float = 0.1,
        clip: float | None = None, schedule: Callable[[int, int], float] = lambda step, total: 1.0,
        log_every: int = 1,
    ) -> None:  # fmt: skip
        options = Options(
            seed=3, accumulate=accumulate, clip_norm=clip, log_every=log_every, sampling_every=1,
            device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        self.net, self.records = Line(), Records()
        optimizer = torch.optim.SGD(self.net.parameters(), lr)
        self.engine = Engine(self.net, optimizer, schedule, total, self.records, folder, options)
        self.batches = AspectGroupedBatches(np.ones(IMAGES), batch, seed=3)
        self.loader = make_loader(Numbers(), self.batches, workers=0)

    def epoch(self, number: int) -> None:
        self.engine.epoch(self.loader, self.batches, number, after_step=lambda: None)

    def order(self, epoch: int) -> list[tuple[int, int]]:
        return [key for batch in self.batches.batches(epoch) for key in batch]


def batch(*indices: int) -> tuple[list[Tensor], list[dict[str, Any]]]:
    images, targets = zip(*(Numbers()[0, index] for index in indices), strict=True)
    return list(images), list(targets)


def test_a_step_by_hand(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    losses = bench.engine.train_step([batch(1, 4)])
    expected = {"loss": 1.0, "loss_a": 0.5, "loss_b": 0.5, "grad_norm": 0.5}
    assert losses == pytest.approx(expected)
    assert bench.net.weight.item() == pytest.approx(1 - 0.1 * 0.5)  # mean of 1/5 and 4/5
    assert bench.engine.step == 1


def test_accumulation_is_the_step_of_the_mean_gradient(tmp_path: Path) -> None:
    two, one = Bench(tmp_path, accumulate=2), Bench(tmp_path)
    two.net.batches = 2
    losses = two.engine.train_step([batch(0, 1), batch(4, 5)])
    expected = one.engine.train_step([batch(0, 1, 4, 5)])
    assert losses == pytest.approx(expected)
    assert two.net.weight.item() == pytest.approx(one.net.weight.item())
    assert two.engine.step == 1


def test_a_shorter_last_group_has_the_same_scale(tmp_path: Path) -> None:
    bench = Bench(tmp_path, accumulate=4)
    bench.engine.train_step([batch(5)])
    assert bench.net.weight.item() == pytest.approx(1 - 0.1 * 1.0)


def test_gradients_do_not_leak_into_the_next_step(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for _ in range(3):
        bench.engine.train_step([batch(5)])
    assert bench.net.weight.item() == pytest.approx(1 - 3 * 0.1)


def test_clipping_shortens_a_long_gradient_and_leaves_a_short_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, clip=0.25)
    assert bench.engine.train_step([batch(5)])["grad_norm"] == pytest.approx(1)  # before clipping
    assert bench.net.weight.item() == pytest.approx(1 - 0.1 * 0.25, abs=1e-6)
    bench.engine.train_step([batch(1)])
    assert bench.net.weight.item() == pytest.approx(1 - 0.1 * 0.25 - 0.1 * 0.2, abs=1e-6)


def test_the_schedule_scales_each_group_s_own_rate(tmp_path: Path) -> None:
    bench = Bench(tmp_path, schedule=lambda step, total: (step + 1) / total)
    for step in range(3):
        bench.engine.train_step([batch(1)])
        assert bench.engine.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (step + 1) / 6)


def test_an_epoch_is_each_image_once_in_its_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.epoch(0)
    bench.epoch(1)
    assert bench.net.seen == bench.order(0) + bench.order(1)
    assert sorted(bench.net.seen[:IMAGES]) == [(0, index) for index in range(IMAGES)]
    assert bench.order(0) != [(0, index) for _, index in bench.order(1)]
    assert [line["step"] for line in bench.records.lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in bench.records.lines] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_epoch_goes_on_in_its_middle(tmp_path: Path, accumulate: int) -> None:
    bench = Bench(tmp_path, accumulate, batch=1, total=12)
    per_epoch = 6 // accumulate
    bench.engine.step = per_epoch + 2  # two steps into the second epoch
    bench.epoch(1)
    assert bench.net.seen == bench.order(1)[2 * accumulate :]
    assert bench.engine.step == 2 * per_epoch


def test_the_run_ends_in_mid_epoch_at_its_last_step(tmp_path: Path) -> None:
    bench = Bench(tmp_path, total=5, log_every=3)
    bench.epoch(0)
    bench.epoch(1)
    assert bench.engine.step == 5 and len(bench.net.seen) == 10
    assert [line["step"] for line in bench.records.lines] == [3, 5]


def test_a_record_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, log_every=3, lr=1e-9)
    bench.epoch(0)
    (line,) = bench.records.lines
    assert line["train/loss_a"] == pytest.approx(0.5)  # mean of 0, 1/5 .. 1
    assert line["train/loss"] == pytest.approx(1.0)
    assert line["train/lr"] == 1e-9
    assert line["train/images_per_second"] > 0 and 0 <= line["train/data_wait"] <= 1


def test_a_record_also_covers_the_end_of_the_epoch_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path, log_every=4, lr=1e-9)  # three steps per epoch
    bench.epoch(0)
    assert not bench.records.lines
    bench.epoch(1)
    first, last = bench.records.lines
    values = [index / 5 for _, index in bench.net.seen]
    assert (first["step"], last["step"]) == (4, 6)
    assert first["train/loss_a"] == pytest.approx(np.mean(values[:8]))
    assert last["train/loss_a"] == pytest.approx(np.mean(values[8:]))


def test_only_the_first_process_draws_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[bool | None] = []

    def bar(*args: Any, disable: bool | None, **options: Any) -> tqdm:
        hidden.append(disable)
        return tqdm(*args, disable=True, **options)

    monkeypatch.setattr("frcnn.training.loop.tqdm", bar)
    bench = Bench(tmp_path)
    bench.epoch(0)
    bench.engine.processes.rank = 1
    bench.epoch(1)
    assert hidden == [None, True]  # None: drawn where the output is a terminal


def test_throughput_counts_from_the_start_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 14.0, 15.0, 18.0])  # start, data, step, data, step
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    window = Window([])
    for _ in range(2):
        window.loaded()
        window.add({"loss": 1.0}, 4)
    record = window.record()
    assert record["train/images_per_second"] == pytest.approx(8 / 8)
    assert record["train/seconds_per_step"] == pytest.approx(4)
    assert record["train/data_wait"] == pytest.approx(2 / 8)


def test_draws_of_a_step_depend_on_its_number_alone(tmp_path: Path) -> None:
    bench, late = Bench(tmp_path), Bench(tmp_path)
    for _ in range(3):
        bench.engine.train_step([batch(1)])
        torch.rand(5)  # somebody else draws
    late.engine.step = 2
    late.net.train()
    late.engine.train_step([batch(1)])
    assert torch.equal(late.net.noise[0], bench.net.noise[2])
    assert not torch.equal(bench.net.noise[1], bench.net.noise[2])
    assert len({step_seed(seed, step) for seed in range(20) for step in range(20)}) == 400


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_everything(tmp_path: Path, value: float) -> None:
    bench = Bench(tmp_path, lr=0.02)
    bench.engine.options.describe = lambda index: f"{index}.png (image id x{index})"
    bench.engine.train_step([batch(1)])
    before = bench.net.weight.item()
    bench.net.weight.data.fill_(value)
    with pytest.raises(UserError) as caught:
        bench.engine.train_step([batch(2, 5)])
    text = str(caught.value)
    assert f"not finite at step 1: loss_a={value};" in text and "loss_b" not in text
    assert "learning rate 0.02, images 2.png (image id x2), 5.png (image id x5);" in text
    assert "\n" not in text
    assert str(tmp_path / "bad_batch.pt") in text
    saved = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert saved["step"] == 1 and [t["image_id"] for t in saved["targets"]] == [2, 5]
    assert [image[0, 0, 0].item() for image in saved["images"]] == [102, 255]
    assert bench.net.weight.grad is None or not bench.net.weight.grad.any()
    assert before < 1  # the step before had counted


def test_a_sampler_that_meets_one_is_told_of_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise FloatingPointError("OHEM: the loss of a candidate is not finite")

    bench = Bench(tmp_path)
    monkeypatch.setattr(bench.net, "forward", fails)
    with pytest.raises(UserError, match=r"not finite at step 0: OHEM.*images 1;"):
        bench.engine.train_step([batch(1)])
    assert (tmp_path / "bad_batch.pt").exists()


def test_groups() -> None:
    assert list(grouped(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(grouped(iter(""), 2)) == []


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("fp32", cpu) == torch.float32
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("frcnn.parallel.device._computes_bf16", lambda device, has=has: has)
        assert choose_precision("auto", cpu) == expected
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        choose_precision("fp16", cpu)


def test_auto_is_fp32_where_the_cpu_is_held_to_older_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for capability, expected in (("AVX512", torch.bfloat16), ("AVX2", torch.float32)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda own=capability: own)
        assert choose_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_auto_precision_asks_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    expected = torch.bfloat16 if has else torch.float32
    assert choose_precision("auto", torch.device("cuda")) == expected
    assert choose_precision("fp16", torch.device("cuda")) == torch.float16


def test_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"^device: '{name}' cannot be used here"):
            choose_device(name)
