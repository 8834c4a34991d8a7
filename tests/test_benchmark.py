"""The benchmark's statistics, what it records and what it compares; no test looks at a clock."""

import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import small_backbone, small_network
from torch import nn
from torchvision.models.detection.image_list import ImageList

from experiments.benchmark import __main__ as command
from experiments.benchmark import (
    against,
    data,
    evaluation,
    losses,
    matching,
    memory,
    report,
    samplers,
    scenes,
    setting,
    start,
    targets,
    worker,
)
from experiments.benchmark import step as steps
from experiments.benchmark.limit import Layout, Recorder, recorded
from experiments.benchmark.machine import machine, now
from experiments.benchmark.report import markdown, page, store, table
from experiments.benchmark.timing import interleaved, ratio, slope, spread
from frcnn.config.compose import CONF, build
from frcnn.data import coco
from frcnn.errors import ConfigError
from frcnn.model.anchors import ASPECT_RATIOS, retinanet_anchors, scaled_sizes
from frcnn.model.retinanet import SCALES
from frcnn.sites.site import stack_candidates
from samplers import OHEM, Random

CPU = torch.device("cpu")
aten = torch.ops.aten


class Clock:
    """Time that passes only when something is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log = ""

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float) -> Callable[[], None]:
        """A call of so many seconds that writes its name down."""

        def call() -> None:
            self.log += name
            self.now += seconds

        return call


@pytest.mark.parametrize(("budget", "rounds"), [(0, 3), (15, 4), (14.9, 3), (18, 5)])
def test_rounds_take_turns_within_the_budget(budget: float, rounds: int) -> None:
    # A round is 1 s + 2 s; after the untimed one and n others 3 + 3n s are gone.
    clock = Clock()
    calls = {"a": clock.takes("a", 1), "b": clock.takes("b", 2)}
    found = interleaved(calls, budget, clock=clock)
    assert clock.log == "ab" + ("abba" * rounds)[: 2 * rounds]
    assert found == {"a": [1] * rounds, "b": [2] * rounds}


def test_what_a_device_still_works_on_is_counted() -> None:
    clock = Clock()
    found = interleaved({"a": clock.takes("a", 1)}, 0, wait=clock.takes("w", 4), clock=clock)
    assert found == {"a": [5, 5, 5]}


def test_quartiles_lie_between_neighbours() -> None:
    assert spread([4, 1, 3, 2]) == {"median": 2.5, "q1": 1.75, "q3": 3.25}


def test_a_ratio_is_that_of_the_rounds() -> None:
    # 3/1, 8/4, 10/2: of the medians it would be 8/2 = 4.
    assert ratio([3, 8, 10], [1, 4, 2]) == {"median": 3, "q1": 2.5, "q3": 4}
    # A machine that slows down fourfold does not blur it.
    assert ratio([2, 4, 8], [1, 2, 4]) == {"median": 2, "q1": 2, "q3": 2}


def test_the_slope_is_the_exponent() -> None:
    sizes = [10, 30, 100, 1000]
    assert slope(sizes, [7 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert slope(sizes, [2.0] * 4) == pytest.approx(0)


class Small(nn.Module):
    """A convolution, a linear layer, and a lookup that is no product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4 * 3 * 4, 5)
        self.table = nn.EmbeddingBag(6, 5, mode="sum")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor([[0, 1], [2, 3]])
        return self.linear(self.conv(images).flatten(1)) + self.table(rows)


def training_of(images: torch.Tensor) -> Callable[[], None]:
    model = Small().to(memory_format=torch.channels_last)
    return lambda: model(images).square().sum().backward()


IMAGES = torch.rand(2, 3, 7, 9)  # the convolution gives [2, 4, 3, 4]


def test_the_limit_is_of_the_products_in_both_directions() -> None:
    step = training_of(IMAGES)
    with Recorder() as recorder:
        step()
    operators = sorted(func.overloadpacket.__name__ for func, _, _ in recorder.calls)
    # The images want no gradient; the linear layer's input and weight do.
    assert operators == ["addmm", "convolution", "convolution_backward", "mm", "mm"]
    args = {f.overloadpacket: args for f, args, _ in recorder.calls}
    image, weight, _, stride, padding, *_ = args[aten.convolution]
    assert image == Layout((2, 3, 7, 9), (189, 63, 9, 1), torch.float32, CPU)
    assert weight == Layout((4, 3, 3, 3), (27, 1, 9, 3), torch.float32, CPU)  # channels last
    assert (stride, padding) == ([2, 2], [0, 0])
    assert args[aten.convolution_backward][-1] == [False, True, True]


def test_the_replay_repeats_them_and_nothing_else() -> None:
    limit = recorded(training_of(IMAGES))
    with Recorder() as again:
        limit()
    kept = [(func.overloadpacket, args) for func, args, _ in again.calls]
    assert [packet for packet, _ in kept] == [func.overloadpacket for func, _, _ in limit.calls]
    # 2 operations a multiply-add. Convolution: 2*4*3*4 outputs of 27 products, forward and weight
    # gradient; linear layer: 2*5 outputs of 48, forward and both gradients.
    assert limit.flops() == 2 * (2 * (2 * 4 * 3 * 4) * 27 + 3 * (2 * 5) * 48)


def test_the_limit_is_that_of_the_precision() -> None:
    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.conv2d(IMAGES, weight).float().sum()
        loss.backward()

    weight = torch.rand(4, 3, 3, 3, requires_grad=True)
    layouts = recorded(step).memory
    assert {layout.dtype for layout in layouts} == {torch.bfloat16}


def test_a_layout_keeps_its_strides() -> None:
    for tensor in (torch.rand(3, 4).T, torch.rand(3, 1).expand(3, 5), torch.rand(2, 3, 4)[:, ::2]):
        made = Layout.of(tensor).random()
        assert (made.shape, made.stride(), made.dtype) == (
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        assert made.std() > 0


@pytest.mark.slow
def test_every_option_is_compared_with_random() -> None:
    found = samplers.variants()
    for group, usual in {"sampler": "random", **samplers.COMPARED}.items():
        options = {f"{group}={file.stem}" for file in Path(CONF, "preset", group).glob("*.yaml")}
        assert options - set(found) == {f"{group}={usual}"}
    # At each site every sampler is compared once: alone, or by the preset that is the same.
    chosen = {text: setting.compose(text)["sampler"] for text in found if "sampler" in text}
    assert {"sampler=ohem", "sampler/rpn=ohem"} <= set(found) and "sampler/rcnn=ohem" not in found
    for site in setting.site_names():
        for name in set(setting.options(f"sampler/{site}")) - {"random"}:
            node = setting.compose(f"sampler/{site}={name}")["sampler"]
            same = [text for text, other in chosen.items() if other == node]
            assert same == [f"sampler/{site}={name}"] or same[0] == f"sampler={name}"


TINY = setting.Workload("fasterrcnn_resnet18_fpn", 128, 96, 2, (8, 16, 32, 64, 128))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> tuple[dict, tuple]:
    """Stock and ours around a network of a few thousand weights, and the batch."""
    monkeypatch.setattr(setting, "resnet_fpn_backbone", small_backbone)
    more = ["trainer.channels_last=false", "model.roi_align=torchvision"]
    with small_network():
        return steps.same_weights(setting.compose(*TINY.overrides(), *more), CPU)


def test_stock_and_ours_do_the_same(trainings: tuple[dict, tuple]) -> None:
    both, (images, targets) = trainings
    # Without a seed of its own an image's draws are the global generator's, as torchvision's are.
    batch = images, [{k: v for k, v in target.items() if k != "seed"} for target in targets]
    before = {n: p.clone() for n, p in both["ours"].model.named_parameters()}
    losses = {}
    for who, training in both.items():
        torch.manual_seed(0)
        losses[who] = training.step(batch, "fp32")
    assert losses["ours"] == pytest.approx(losses["stock torchvision"], abs=1e-6)
    for training in both.values():
        after = dict(training.model.named_parameters())
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_stock_retinanet_and_ours_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision trains column 0 too, and divides the box loss as its class loss."""
    monkeypatch.setattr(setting, "resnet_fpn_backbone", small_backbone)
    workload = setting.Workload("retinanet_resnet18_fpn", 128, 96, 2)
    same = ["loss.dense.background_column=true", "box_loss.dense.per=image"]
    with small_network():
        both, batch = steps.same_weights(setting.compose(*workload.overrides(), *same), CPU)
    losses = [training.step(batch, "fp32") for training in both.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0].keys() == {"classification", "bbox_regression"}


def test_a_variant_runs_its_own_sites_on_the_shared_network(trainings: tuple[dict, tuple]) -> None:
    training, batch = trainings[0]["ours"], trainings[1]
    usual = samplers.contents(training.model)
    assert isinstance(training.model.sites["rcnn"].sampler, Random)
    with small_network():
        sites = samplers.contents(samplers._detector(TINY, 4, "sampler=ohem"))
    mined = samplers._step(training, sites, [], batch, "fp32")
    assert isinstance(training.model.sites["rcnn"].sampler, OHEM)
    drawn = samplers._step(training, usual, [], batch, "fp32")
    assert isinstance(training.model.sites["rcnn"].sampler, Random)
    assert mined["loss_objectness"] == drawn["loss_objectness"]
    assert mined["loss_classifier"] > drawn["loss_classifier"]  # the hardest


def test_steps_that_the_hardware_cannot_take_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_peak", lambda *_: 1)
    found = {"stock torchvision, fp32": [2.0] * 3, "ours, fp32": [1.0] * 3}
    rows = steps._step_rows(TINY, ("fp32", "bf16"), found, CPU)
    assert [row["step"] for row in rows[2:]] == ["stock torchvision, bf16", "ours, bf16"]
    assert rows[1]["times as fast as stock torchvision, fp32"]["median"] == 2
    assert {row["not measured"] for row in rows[2:]} == {"this CPU does not compute in bf16"}


def test_every_site_has_a_scene() -> None:
    with small_network():
        found = samplers.scenes_of(TINY)
    assert found == {"rpn": scenes.ANCHORS, "rcnn": scenes.PROPOSALS}


@pytest.mark.parametrize("scene", [scenes.ANCHORS, scenes.PROPOSALS])
def test_made_up_candidates_are_those_of_a_site(scene: scenes.Scene) -> None:
    made = scenes.candidates(scene, 3, 2_000, 5, CPU)
    assert (made.num_images, len(made.boxes), len(made.gt_boxes)) == (3, 6_000, 15)
    for image in range(3):
        here = made.labels[made.image == image]
        assert (here > 0).any() and (here == 0).any() and here.max() <= scene.classes
    rows = torch.tensor([5, 1, 5_999])
    shown, truth = made.predict(rows), made.labels[rows].clamp(min=0)
    assert torch.equal(shown.class_loss, F.cross_entropy(shown.logits, truth, reduction="none"))
    assert (shown.loss >= shown.class_loss).all()


def test_matching_is_of_one_image_with_so_many() -> None:
    found = matching.matching((7, 300), CPU)()
    assert (len(found.boxes), len(found.gt_boxes)) == (300, 7)


def test_back_ends_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "IMAGES", 3)
    (content,) = evaluation.measure(CPU, 0)["tables"]
    assert [row["back end"] for row in content["rows"]] == ["pycocotools", "faster_coco_eval"]
    figures = dict.fromkeys(evaluation.OVERALL, 0.5)
    evaluation.refuse_different(figures, figures | {"AP": 0.5 + 1e-12})
    with pytest.raises(ValueError, match="APs 0.5 and 0.51"):
        evaluation.refuse_different(figures, figures | {"APs": 0.51})


def test_made_up_annotations_are_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    data.write_coco(file, tmp_path, images=20, boxes=90)
    images = coco("train", *[tmp_path, file] * 2)
    assert (len(images), len(images.boxes), images.num_classes) == (20, 90, 81)
    assert not images.problems.counts
    images.load = data._Blank(images.widths, images.heights)
    assert images[3][0].shape == (3, 480, 640)


needs_proc = pytest.mark.skipif(not memory.can_measure(), reason=memory.NO_PROC)


@needs_proc
def test_memory_is_that_above_the_baseline() -> None:
    # In this process memory that was freed may be used again, and there is no rise to see.
    rise = memory.in_child(memory.rise, partial(np.ones, 8_000_000))  # 64 MB
    assert 63e6 < rise < 80e6
    held = np.ones(4_000_000)
    assert memory.shared_out([os.getpid()]) > held.nbytes


@needs_proc
def test_waiting_is_a_share_of_the_steps_that_follow_a_first_one() -> None:
    class Instant:
        def step(self, batch: Any, precision: str) -> dict[str, float]:
            return {"loss": float(len(batch[0]))}

    def slow() -> Iterator[tuple[list[int], list[int]]]:
        for count in (4, 1, 2):
            time.sleep(0.01)
            yield [0] * count, [0] * count

    window = data._trained(Instant(), slow(), "fp32", seconds=0.0)
    assert [terms["loss"] for terms in window.terms] == [1.0]  # not the first, and no third
    assert window.images == 1 and window.record()["train/data_wait"] > 0.5


def test_the_workers_of_a_child_start_as_usual() -> None:
    # As text: the function itself would be pickled with this process's state.
    method = memory.in_child(eval, "__import__('multiprocessing').get_start_method()")
    assert method == multiprocessing.get_start_method()


TABLE = table(
    "Steps",
    [
        {"step": "a", "ratio": {"median": 1.0, "q1": 1.0, "q3": 1.0}, "MB": 1234},
        {"step": "b", "ratio": {"median": 1.2345, "q1": 0.5, "q3": 123.4}, "MB": 7},
        {"step": "c", "not measured": "no CUDA GPU here"},
    ],
    "A note.",
)
SHOWN = """\
**Steps**

| step | ratio | MB |
|---|---|---|
| a | 1.00 (1.00 to 1.00) | 1,234 |
| b | 1.23 (0.500 to 123) | 7 |
| c | not measured: no CUDA GPU here |  |

A note."""


def test_a_table_shows_spreads_and_reasons() -> None:
    assert markdown(TABLE) == SHOWN
    alone = markdown(table("On a GPU", [{"step": "x", "not measured": "none here"}]))
    assert alone.splitlines()[2:] == ["| step |  |", "|---|---|", "| x | not measured: none here |"]


def test_the_page_is_made_from_the_file_alone(tmp_path: Path) -> None:
    file, part = tmp_path / "sub/cpu.json", {"commit": "abc", "date": "2026-01-02"}
    store(file, {"GPU": None}, {"step": {**part, "tables": [TABLE]}})
    assert page(json.loads(file.read_text())) == file.with_suffix(".md").read_text()
    assert SHOWN in file.with_suffix(".md").read_text()
    store(file, {"GPU": None}, {"data": {**part, "tables": []}})
    assert list(json.loads(file.read_text())["parts"]) == ["step", "data"]
    store(file, {"GPU": "another"}, {"data": {**part, "tables": []}})
    assert list(json.loads(file.read_text())["parts"]) == ["data"]


def test_the_command_puts_a_cpus_first_figures_into_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"tables": [table("Waiting", [{"data": "x", "share of time waiting, %": 1.5}])]}
    monkeypatch.setattr(command, "PARTS", {"data": (lambda *_, **__: measured, 1)})
    monkeypatch.chdir(tmp_path)
    shown = Path("README.md")
    shown.write_text("<!-- out/cpu.json -->\nold\n<!-- end -->\n")
    line = ["benchmark", "data", "--device", "cpu", "--out", "out", "--page", str(shown)]
    monkeypatch.setattr("sys.argv", line)
    command.main()
    lines = shown.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("<!-- out/cpu.json -->", "<!-- end -->")
    assert [line.split(" | ")[-1] for line in lines[3:-1]] == [*["not measured |"] * 4, "1.50 |"]


def test_the_machine_is_described_without_its_name() -> None:
    described = json.dumps(machine(CPU) | now())
    assert str(torch.__version__) in described
    assert socket.gethostname() not in described and str(Path(CONF).parent) not in described


def test_an_option_that_cannot_be_built_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("loss: not at this site")

    monkeypatch.setattr(samplers, "variants", lambda: ["loss=odd"])
    detector = samplers._detector
    monkeypatch.setattr(
        samplers, "_detector", lambda *a: refuse() if a[2] == "loss=odd" else detector(*a)
    )
    monkeypatch.setattr(setting, "resnet_fpn_backbone", small_backbone)
    with small_network():
        rows, _, profiles = samplers._steps(TINY, CPU, 0)
    assert [row["variant"] for row in rows] == ["sampler=random", "loss=odd"]
    assert rows[1]["not measured"] == "loss: not at this site"
    (profile,) = profiles.values()
    assert sum(row["share, %"] for row in profile) == pytest.approx(100)
    assert rows[0]["labels, drawing and losses, ms"] > 0
    assert rows[0]["more than random, % of its step"] == 0


@pytest.mark.slow
def test_every_option_takes_a_timed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "resnet_fpn_backbone", small_backbone)
    with small_network():
        made = samplers.Variants(TINY, CPU)
        others = [name for name in samplers.variants() if "sampler" not in name]
        steps, refused = samplers._built(made, others)
        found = {name: step() for name, step in steps.items()}
    assert "loss_rcnn_swn" in found["weigher=swn"]
    assert not refused
    for name in steps:  # labels, draw and losses of both sites
        assert [len(seconds) for seconds in made.clocks[name]] == [1] * 6, name


MINED = "`sampler=ohem`, bf16 step of trained weights, times its products"


def test_targets_are_compared_in_the_right_direction() -> None:
    spread = {"median": 1.9, "q1": 1.85, "q3": 2.0}
    steps = table("Training step: fasterrcnn", [{"step": "ours, fp32", targets.STEP: spread}])
    after = "sampler=ohem, after 20 steps"
    ohem = table("Distance from the limit by sampler", [{"step": after, targets.LIMIT: spread}])
    wait = table("Waiting", [{"data": "BCCD", "share of time waiting, %": 5.1}])
    parts = {
        "step": {"tables": [steps]},
        "samplers": {"tables": [ohem]},
        "data": {"tables": [wait]},
    }
    results = {"machine": {"computes in bf16": False}, "parts": parts}
    rows = {row["what"]: row for row in targets.compared(results)["rows"]}
    assert rows["fp32 step, times as fast as stock torchvision in fp32"]["reached"] is True
    assert rows["waiting for data, % of the time"]["reached"] is False
    mining = rows[MINED]
    assert mining["reached"] == "" and "in fp32 1.90 (1.85 to 2.00)" in mining["measured"]
    assert "no bf16" in rows["bf16 step, times as fast as stock torchvision in fp32"]["measured"]
    assert "no such row" in rows["loading annotations of COCO's size, seconds"]["measured"]
    results["machine"]["computes in bf16"] = True
    rows = {row["what"]: row for row in targets.compared(results)["rows"]}
    assert rows[MINED]["reached"] is False
    assert (
        "no such row" in rows["bf16 step, times as fast as stock torchvision in fp32"]["measured"]
    )


@pytest.mark.parametrize(
    ("value", "reached"),
    [
        ({"median": 1.9, "q1": 1.7, "q3": 2.0}, "undecided"),
        ({"median": 1.9, "q1": 1.8, "q3": 2.0}, "undecided"),
        ({"median": 1.7, "q1": 1.6, "q3": 1.8}, "undecided"),
        ({"median": 1.9, "q1": 1.85, "q3": 2.0}, True),
        ({"median": 1.7, "q1": 1.6, "q3": 1.75}, False),
        ({"median": 1.8, "q1": 1.8, "q3": 1.8}, True),
        (1.8, True),
    ],
)
def test_a_spread_that_contains_the_bound_decides_nothing(value: object, reached: object) -> None:
    steps = table("Training step: fasterrcnn", [{"step": "ours, fp32", targets.STEP: value}])
    results = {"machine": {"computes in bf16": False}, "parts": {"step": {"tables": [steps]}}}
    first, *_ = targets.compared(results)["rows"]
    assert first["target"] == "at least 1.8" and first["reached"] == reached


def test_a_cell_of_a_benchmark_keeps_its_bar() -> None:
    assert r"| a\|b | 1 |" in markdown(table("title", [{"what": "a|b", "x": 1}]))


@pytest.mark.parametrize("name", setting.options("loss"))
def test_a_loss_is_timed_with_its_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loss of a large head moves logits, and the samples stay as they are."""
    for key, size in {"SAMPLES": 40, "POSITIVES": 10, "CLASSES": 5}.items():
        monkeypatch.setattr(losses, key, size)
    samples = losses.head(CPU)
    before = samples.logits.clone()
    gradient = losses.both_passes(losses.class_loss(name), samples)
    assert gradient.isfinite().all() and gradient.any()
    assert torch.equal(samples.logits, before) and samples.logits.grad is None
    assert (samples.labels > 0).sum() == 10 and samples.labels.max() <= 5


def test_the_target_of_a_ranking_is_on_the_row_that_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "both_passes", lambda *_: None)
    monkeypatch.setattr(losses.Variants, "__init__", lambda *_: None)
    monkeypatch.setattr(losses.Variants, "step", lambda *_: lambda: time.sleep(0.001))
    parts = {"losses": losses.measure(CPU, 0.1)}
    rows = targets.compared({"machine": {"computes in bf16": False}, "parts": parts})["rows"]
    (row,) = (row for row in rows if "bucketed" in row["what"])
    assert row["reached"] is True


def test_no_figure_is_taken_from_a_method_whose_name_begins_alike() -> None:
    rows = [
        {"variant": "sampler=ohem", report.WHY: "why"},
        {"variant": "sampler=ohem_quota", "x": 1},
    ]
    results = {"parts": {"samplers": {"tables": [table("A step, fp32", rows)]}}}
    names = ("sampler=ohem", "sampler=ohem_quota", "")
    assert [report.found(results, "samplers", "A step", n, "x") for n in names] == [None, 1, 1]


def test_the_targets_of_annotations_are_on_the_row_that_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "can_measure", lambda: False)  # the row's name alone
    assert data._annotations(1.0)["annotations"] == targets.ANNOTATIONS[2]


def judged(calls: list[dict]) -> dict[str, object]:
    """What the targets say of calls of samplers: reached, by the beginning of the target's text."""
    machine = {"computes in bf16": False}
    rows = targets.compared({"machine": machine, "parts": {"samplers": {"tables": calls}}})["rows"]
    return {row["what"].split(",")[0]: row["reached"] for row in rows if "call" in row["what"]}


def test_every_call_that_is_measured_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scenes.candidates  # smaller here than the titles say
    monkeypatch.setattr(scenes, "candidates", lambda scene, *_: made(scene, 2, 300, 3, CPU))
    sites = {"rpn": scenes.ANCHORS, "rcnn": scenes.PROPOSALS}
    found = {
        site: {name: Random(8, 0.25) for name in ("random", *setting.options(f"sampler/{site}"))}
        for site in sites
    }
    calls = [samplers._alone(site, scene, found[site], CPU, 0) for site, scene in sites.items()]
    reached = judged(calls)
    dear = ("iou_balanced", "instance_balanced", "hard_negative", "ohem")
    named = [f"`sampler/rcnn={name}`" for name in found["rcnn"]]
    assert reached.keys() == {*named, *(f"`sampler/rpn={name}`" for name in dear)}
    assert set(reached.values()) <= {True, False, "undecided"}


def test_bounds_of_a_call() -> None:
    def rows(column: str, values: dict[str, float]) -> list[dict]:
        return [
            {"sampler": name, column: dict.fromkeys(("median", "q1", "q3"), value)}
            for name, value in values.items()
        ]

    head = rows("ms", {"ohem": 20.1, "ohem_quota": 19.9})
    anchors = rows("times random", {"iou_balanced": 2.1, "hard_negative": 1.9, "ohem": 2.9})
    titles = [f"Call of a sampler/{s}: 8 images x {n:,} candidates x 30 objects"
              for s, n in (("rcnn", 2_000), ("rpn", 200_000))]  # fmt: skip
    reached = judged([table(title, r) for title, r in zip(titles, (head, anchors), strict=True)])
    at_head = {name: reached[f"`sampler/rcnn={name}`"] for name in ("ohem", "ohem_quota", "pisa")}
    assert at_head == {"ohem": False, "ohem_quota": True, "pisa": ""}
    at_rpn = {name: reached[f"`sampler/rpn={name}`"] for name in ("iou_balanced", "hard_negative")}
    assert at_rpn == {"iou_balanced": False, "hard_negative": True}
    assert reached["`sampler/rpn=ohem`"] is True


def test_a_slower_checkout_has_a_ratio_above_one() -> None:
    found = {
        f"{where}, {sampler} fp32": [seconds] * 3
        for where, seconds in {"here": 3.0, "there": 2.0}.items()
        for sampler in ("random", "ohem")
    }
    rows = {row["step"]: row for row in against.rows(found, CPU)}
    assert rows["random fp32"]["seconds here / there"]["median"] == 1.5
    assert rows["random fp32"][targets.FASTER]["median"] == pytest.approx(2 / 3)
    assert rows["ohem fp32"]["rounds"] == 3
    assert rows["ohem bf16"] == {"step": "ohem bf16", report.WHY: setting.no_bf16(CPU)}


def test_mining_is_compared_with_the_random_step_of_the_other_checkout() -> None:
    seconds = {"random": (1.0, 2.0), "ohem": (2.7, 4.0), "pisa": (2.9, 4.0)}
    seconds |= {"validation": (1.0, 1.3), "make-train": (1.0, 1.1)}
    found = {
        f"{where}, {work} bf16": [value] * 3
        for work, pair in seconds.items()
        for where, value in zip(("here", "there"), pair, strict=True)
    }
    tables = [table("This checkout", against.rows(found, CPU))]
    results = {"machine": {"computes in bf16": True}, "parts": {"against": {"tables": tables}}}
    rows = targets.compared(results, targets.AGAINST)["rows"]
    # 2.7 / 2 and 2.9 / 2 against 1.42, 1.3 against 1.25, 1.1 against 1.15.
    assert [row["reached"] for row in rows] == [True, False, True, False]


def test_validation_leaves_the_network_as_it_was(trainings: tuple[dict, tuple]) -> None:
    training, batch = trainings[0]["ours"], trainings[1]
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    seen: list[bool] = []
    training.model.register_forward_hook(lambda m, i, out: seen.append(m.training))
    worker.validate(training, batch, "fp32")
    assert seen == [False] and training.model.training
    assert all(torch.equal(training.model.state_dict()[name], before[name]) for name in before)


@pytest.mark.slow
def test_every_limit_by_sampler_is_of_trained_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setting, "computes_bf16", lambda _: False)
    monkeypatch.setattr(samplers, "LIMITED", ("sampler=random", "sampler=ohem"))
    train = samplers.Variants.train
    monkeypatch.setattr(samplers.Variants, "train", lambda made, n: train(made, min(n, 1)))
    with small_network():
        content = samplers._limits(TINY, CPU, 0)
    rows = [row["step"] for row in content["rows"]]
    assert rows == ["sampler=random, after 20 steps", "sampler=ohem, after 20 steps"]
    places = [t.place for t in targets.TARGETS if t.what.startswith("`sampler=ohem`, bf16")]
    results = {"parts": {"samplers": {"tables": [content]}}}
    assert [report.found(results, *place)["median"] > 1 for place in places] == [True]


@pytest.mark.slow
def test_a_start_ends_with_the_first_step() -> None:
    start.first_step(CPU, ["data.train_images=4", "trainer.workers=0"])
    with pytest.raises(SystemExit, match="without a step"):
        start.first_step(CPU, ["no.such=key"])


def test_two_checkouts_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    answering = f"""
import os, sys
print(os.environ["PYTHONPATH"] + "/experiments/benchmark/setting.py", flush=True)
for line in sys.stdin:
    with open({str(log)!r}, "a") as log:
        log.write(os.path.basename(os.getcwd()) + " " + line)
    print("done", flush=True)
"""
    script = tmp_path / "worker.py"
    script.write_text(answering)
    for name in ("ours", "theirs"):
        (tmp_path / name / "experiments/benchmark").mkdir(parents=True)
    monkeypatch.setattr(against, "HERE", tmp_path / "ours")
    monkeypatch.setattr(against.worker, "__file__", str(script))
    monkeypatch.setattr(against, "steps", lambda _: [("random", "fp32"), ("ohem", "fp32")])
    against.measure(tmp_path / "theirs", CPU, 0)
    turn = [f"{who} {sampler} fp32" for sampler in ("random", "ohem") for who in ("ours", "theirs")]
    assert log.read_text().splitlines() == [*turn, *turn, *turn[::-1], *turn]
    with pytest.raises(SystemExit, match="no checkout"):
        against.measure(tmp_path, CPU, 0)
    script.write_text("import sys; sys.exit(3)")
    with pytest.raises(SystemExit, match="ours: the process of this checkout failed"):
        against.measure(tmp_path / "theirs", CPU, 0)
    script.write_text("print('/elsewhere/setting.py')")
    with pytest.raises(SystemExit, match="imported /elsewhere"):
        against.measure(tmp_path / "theirs", CPU, 0)


def test_the_command_takes_a_part_or_another_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(
        against, "measure", lambda *given: measured.append(given) or {"tables": [TABLE]}
    )
    line = ["benchmark", "against=some/where", "--device", "cpu", "--minutes", "2"]
    monkeypatch.setattr("sys.argv", line)
    command.main()
    assert measured == [(Path("some/where"), CPU, 120.0)]
    assert SHOWN in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["benchmark", "steps"])
    with pytest.raises(SystemExit):
        command.main()
    assert "'steps' is none of step," in capsys.readouterr().err


@pytest.mark.slow
def test_each_checkout_runs_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("conf", "experiments", "frcnn", "samplers"):
        ignored = shutil.ignore_patterns("__pycache__", "*.png", "*.csv")
        shutil.copytree(against.HERE / package, tmp_path / package, ignore=ignored)
    with (tmp_path / "experiments/benchmark/training.py").open("a") as file:
        file.write("\n\nTraining.step = lambda *_: __import__('time').sleep(8)\n")
    monkeypatch.setattr(against, "steps", lambda _: [("random", "fp32")])
    content, _ = against.measure(tmp_path, CPU, 0, TINY)["tables"]
    row = content["rows"][0]
    assert (row["step"], row["rounds"]) == ("random fp32", 3)
    assert row["seconds there"]["q1"] >= 8
    assert 0 < row["seconds here / there"]["median"] < 1


@pytest.mark.slow
@needs_proc
def test_matching_a_crowd_takes_bounded_memory() -> None:
    rise, _ = memory.in_child(matching.peak, (1_000, 250_000), "cpu")
    assert rise < 300e6


@pytest.mark.slow
@needs_proc
def test_assigning_retinanets_anchors_takes_bounded_memory() -> None:
    assert memory.in_child(assigning_retinanets_anchors) < 300e6


def assigning_retinanets_anchors() -> int:
    """Bytes for 300 objects in 800 x 1333 pixels."""
    shapes = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    pixels = torch.zeros(1, 3, 800, 1344)
    sizes = scaled_sizes([32, 64, 128, 256, 512], SCALES, whole=True)
    levels = [torch.zeros(1, 1, *shape) for shape in shapes]
    anchors = retinanet_anchors(sizes, ASPECT_RATIOS)(ImageList(pixels, [(800, 1333)]), levels)
    assert len(anchors[0]) == 201_600
    config = setting.compose("model=retinanet_resnet18_fpn", "data=shapes")
    assign = build(config["assigner"]["dense"])
    labels = torch.ones(300, dtype=torch.int64)

    def action(objects: int) -> None:
        boxes = scenes.boxes(objects, torch.Generator().manual_seed(0))
        assign(stack_candidates(anchors, [{"boxes": boxes}], [labels[:objects]]))

    action(1)  # loads the code, whose memory must not count
    return memory.rise(lambda: action(300))


@pytest.mark.slow
@needs_proc
def test_annotations_of_cocos_size_take_bounded_memory() -> None:
    row = data._annotations(1.0)
    assert row["peak memory, MB"] < 1_500
    assert row[f"held with {data.WORKERS} workers, MB"] < 1.5 * row["held, MB"]
