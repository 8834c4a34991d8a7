"""Two processes with batches of 2 against one with a batch of 4: losses, weights, metrics."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import (
    one_fails,
    one_fails_as_one_is_busy,
    one_is_killed,
    one_that_does_not_leave,
    run_in_two,
    sums,
)
from tiny import (
    SMALL,
    SMALL_CASCADE,
    SMALL_DENSE,
    composed,
    lines,
    presets,
    small_network,
    tiny,
    without_times,
)

from frcnn.build import dataset
from frcnn.data import AspectGroupedBatches
from frcnn.errors import ConfigError, UserError
from frcnn.evaluation.inference import merge_detections, validation_loader
from frcnn.parallel.cluster import RankInfo, Rendezvous, detect_launcher, first_host, rendezvous
from frcnn.parallel.device import rank_device
from frcnn.runfolder import checkpoint
from frcnn.runfolder.signals import Stop, stop_on_signals
from frcnn.training import launch
from frcnn.training.launch import (
    StoreLost,
    explain_lost_process,
    join_launcher,
    launch_run,
    local_ranks,
    start,
)
from frcnn.training.run import run

# One of each way in which a loss or a sampler looks at the batch.
QUICK = (
    # A sampler that previews, and a loss that takes a statistic over the batch.
    "sampler=pisa loss.rcnn.class_weights=batch loss.rcnn.keep_scale=true",
    "sampler/rpn=hard_negative loss=ghm box_loss=carl",
    # Labels from predictions, and a threshold and a beta that follow the batch.
    "assigner=task_aligned loss=quality_focal",
    "assigner=dynamic_iou box_loss=dynamic_smooth_l1 "
    "assigner.rcnn.interval=1 assigner.rcnn.min_threshold=0.1 assigner.rcnn.top=3 "
    "box_loss.rcnn.interval=1",
    # Counters of classes, and classes that are drawn.
    "loss=equalization_v2 sampler=ohem",
    "loss=seesaw",
    "loss=federated loss.rcnn.num_classes=2 sampler=ohem",
    "data.sampler=repeat_factor data.repeat_threshold=1",
    "trainer.accumulate=2",
    # A batch of 3, two validations of 2 images and of 1: one process has none of the last.
    "data.train_images=15 data.val_images=5",
    # The same at the site of a RetinaNet.
    "loss.dense.per=image box_loss.dense.per=image trainer.accumulate=2 data.train_images=14",
    "weigher=moving_positives sampler/dense=random",
    "weigher/rcnn=swn weigher/rpn=equal_terms sampler=ohem",
)
# 3 x 4 + 1: a batch that leaves one process without an image, which BatchNorm notices.
ODD = "data.train_images=13"
# A preset of weighers may have one for RetinaNet alone.
ALL = [
    # With seed 0 a proposal of IoU 0.5 is rounded to either side, and `ofb` counts proposals.
    *(
        f"{preset} seed=1" if preset == "sampler=ofb" else preset
        for preset in presets("sampler", "loss", "box_loss", "assigner", "weigher")
    ),
    *(f"{weigher} sampler/dense=random" for weigher in presets("weigher")),
    "weigher/rpn=swn trainer.accumulate=2",
    "assigner=top_n loss=noisy_anchors weigher=noisy_anchors sampler/rpn=all "
    "loss.rpn.labels=released weigher.rpn.weights=released",
    "sampler=pisa loss/rcnn3=ghm_c",
    "sampler/dense=pisa",
    "sampler/dense=ohem loss/dense=cross_entropy",
    "sampler/dense=hard_negative loss/dense=ghm_c box_loss/dense=ghm_r",
    "data.num_objects=[0,0]",
]
# Every sampler that previews with every loss that takes a statistic over the batch.
PAIRS = [
    f"sampler/rpn={sampler} sampler/rcnn={sampler} {loss}"
    for sampler in ("ohem", "ohem_quota", "hard_negative", "pisa")
    for loss in (
        "loss=ghm_c",
        "loss.rpn.class_weights=batch loss.rcnn.class_weights=batch",
        "box_loss=ghm_r",
        "box_loss=carl box_loss.rcnn.added=false",
    )
]
COMMON = ("trainer.workers=0", "trainer.epochs=1", "optimizer.lr=0.005")


def composed_for(case: str, batch_size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """A tiny run."""
    size = f"trainer.batch_size={batch_size}"
    small = SMALL_DENSE if "dense" in case else SMALL_CASCADE if "rcnn3" in case else SMALL
    return composed(*small, *COMMON, size, "data.num_objects=[0,3]", *case.split())


def slug(case: str) -> str:
    return re.sub(r"\W+", "-", case)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_in_two({slug(case): composed_for(case, 2) for case in (*QUICK, ODD)}, folder)
    return folder


def assert_same(two: Path, one: Path) -> None:
    """Weights, states of sites, BatchNorm's statistics and every record but those of one share."""
    first, second = (checkpoint.load(path / "checkpoints/last.pt") for path in (two, one))
    torch.testing.assert_close(first["model"], second["model"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first["sites"], second["sites"], rtol=1e-5, atol=1e-5)
    records = [
        [r for r in without_times(lines(path)) if not any("sampling" in key for key in r)]
        for path in (two, one)
    ]
    assert len(records[0]) == len(records[1]) >= 3
    for ours, theirs in zip(*records, strict=True):
        shown = {k for k in theirs if theirs[k] is not None}
        assert {k for k in ours if ours[k] is not None} == shown
        assert {k: ours[k] for k in shown} == pytest.approx(
            {k: theirs[k] for k in shown}, rel=1e-5, abs=1e-5
        )
    assert sum("val/loss" in record for record in records[0]) == 1


@pytest.mark.parametrize("case", QUICK)
def test_two_processes_are_one(quick: Path, tmp_path: Path, case: str) -> None:
    with small_network():
        run(*composed_for(case, 4), tmp_path)
    assert_same(quick / slug(case), tmp_path)


def test_a_process_without_an_image_hangs_nobody(quick: Path) -> None:
    records = [record for record in lines(quick / slug(ODD)) if "train/loss" in record]
    assert [record["step"] for record in records] == list(range(1, 5))
    assert all(np.isfinite(record["train/loss"]) for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_two_processes_are_one_for_every_name(
    tmp_path: Path, half: int, record_property: Callable[[str, object], None]
) -> None:
    cases = [*ALL, *PAIRS][half::2]
    run_in_two({slug(case): composed_for(case, 2) for case in cases}, tmp_path)
    for case in cases:
        with small_network():
            run(*composed_for(case, 4), tmp_path / "one" / slug(case))
        assert_same(tmp_path / slug(case), tmp_path / "one" / slug(case))
    record_property("counted", {"presets for which two processes are one": len(cases)})


@pytest.mark.slow
def test_what_processes_say_to_each_other() -> None:
    slope, rows, names, said = start(local_ranks(2), sums, 3.0)
    assert slope == 3.0 * 2 * 2 * 1
    assert rows == [0, 1, 0, 1, 2]
    assert names == ["process 0", "process 1"]
    assert said == "said by 0"


def test_the_error_of_the_process_that_fails_is_the_error() -> None:
    with pytest.raises(UserError, match=r"^a.png: no such image"):
        start(local_ranks(2), one_fails)


@pytest.mark.slow
def test_a_killed_process_ends_the_others() -> None:
    with pytest.raises(UserError, match="process 1 of 2 was ended by SIGKILL"):
        start(local_ranks(2), one_is_killed)


@pytest.mark.slow
def test_an_error_is_told_by_one_that_others_do_not_heed(monkeypatch: pytest.MonkeyPatch) -> None:
    # torchrun stops all when one has failed; the reason is still the failure.
    monkeypatch.setattr(launch, "all_ended_well", lambda *_: signal.raise_signal(signal.SIGTERM))
    with stop_on_signals(), pytest.raises(UserError, match=r"^a.png: no such image"):
        start(local_ranks(2), one_fails_as_one_is_busy)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("rank", "local_rank", "error", "raised"),
    [
        (0, 0, UserError("a.png: no such image"), UserError),
        (2, 0, UserError("a.png: no such image"), SystemExit),  # the first one says it
        (2, 0, StoreLost("lost"), StoreLost),  # the first one may be dead
        (3, 1, StoreLost("lost"), SystemExit),  # once per machine
    ],
)
def test_who_reports_an_error_under_a_launcher(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rank: int,
    local_rank: int,
    error: UserError,
    raised: type[BaseException],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(launch, "start", fail)
    for name in ("ignore_signals", "silence_all_but_first"):  # they would last
        monkeypatch.setattr(launch, name, lambda *_: None)
    with pytest.raises(raised):
        join_launcher(RankInfo(rank, 4, local_rank), {}, {}, tmp_path, {})


def test_a_lost_connection_is_one_line_and_other_errors_stay() -> None:
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")
    lost = explain_lost_process(RankInfo(0, 2, 0), gloo)
    assert isinstance(lost, UserError) and "process 0 of 2 lost the connection" in str(lost)
    assert lost.__cause__ is gloo  # for traceback.txt
    bug = RuntimeError("shapes differ")
    assert explain_lost_process(RankInfo(0, 2, 0), bug) is bug


@pytest.mark.slow
def test_a_second_signal_ends_a_process_that_does_not_leave(tmp_path: Path) -> None:
    def once_there(name: str) -> None:
        while not (tmp_path / name).exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    def twice() -> None:
        once_there("begun")
        once_there("asked")

    threading.Thread(target=twice, daemon=True).start()
    with stop_on_signals(), pytest.raises(Stop) as stop:
        start(local_ranks(1), one_that_does_not_leave, tmp_path)
    assert stop.value.code == 143 and not multiprocessing.active_children()


def test_more_processes_than_gpus_are_refused_before_one_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(launch, "start", lambda members, *_, **__: float(len(members)))
    # Whatever puts a tensor on a GPU fails here: there is none.
    config, choices = tiny("trainer.device=cuda", "trainer.devices=2")
    assert launch_run(config, choices, tmp_path, {}) == 2
    config["trainer"].update(device="auto", devices=3)
    with pytest.raises(ConfigError, match="^trainer.devices=3, but this machine has 2 GPUs$"):
        launch_run(config, choices, tmp_path, {})


def test_one_gpu_by_its_number_is_not_for_several_processes(tmp_path: Path) -> None:
    config, choices = tiny("trainer.device=cuda:2", "trainer.devices=2")
    refused = pytest.raises(ConfigError, match="^trainer.device=cuda:2: .*CUDA_VISIBLE_DEVICES=2,3")
    with refused:
        launch_run(config, choices, tmp_path, {})
    with refused:  # one of a launcher's
        rank_device("cuda:2", 0)


def test_every_image_is_of_one_process() -> None:
    shares = [AspectGroupedBatches(np.ones(13), 4, 0, rank, 3) for rank in range(3)]
    whole = AspectGroupedBatches(np.ones(13), 4, 0).batches(0)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(key for part in parts for key in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert any(not part for share in shares for part in share)  # 13 = 3 x 4 + 1


@pytest.mark.parametrize(("images", "size"), [(5, 2), (4, 2), (7, 3), (2, 3), (1, 2)])
def test_every_image_is_evaluated_by_one_process(images: int, size: int) -> None:
    config, _ = tiny(f"data.val_images={images}")
    found = dataset(config["data"], "val")
    shares = [
        [[target["image_id"] for target in targets] for _, targets in loader]
        for loader in (validation_loader(found, 2, 0, rank, size) for rank in range(size))
    ]
    batches = [batch for share in shares for batch in share if batch]
    # Each once, in the batches of a single process, which pad the images.
    assert sorted(batches) == [
        list(range(images))[start : start + 2] for start in range(0, images, 2)
    ]
    assert {len(share) for share in shares} == {-(-images // (2 * size))}  # all take part in each


def test_detections_of_all_are_in_order() -> None:
    parts = [[{"image_id": 0}, {"image_id": 1}, {"image_id": 4}], [{"image_id": 2}], []]
    assert [found["image_id"] for found in merge_detections(parts)] == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, (3, 4, 1)),
        # sbatch --ntasks=4: the script itself is one process, whatever the job has room for
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}, None),
        # srun --ntasks=1 in it, and an interactive step: one task
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_the_place_that_a_launcher_gives(variables, expected) -> None:
    here = detect_launcher(variables)
    assert (here and (here.rank, here.size, here.local_rank)) == expected


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[07-09,12],cpu1", "gpu07"), ("a1,a2", "a1"), ("one", "one"), ("r[1,3]n-ib", "r1n-ib")],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_where_processes_meet() -> None:
    torchrun = {"MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    again = {**torchrun, "TORCHELASTIC_RESTART_COUNT": "2"}
    assert rendezvous(again) == Rendezvous("a", 1, launcher_store=True, attempt="2")
    slurm = {"SLURM_JOB_ID": "41234", "SLURM_STEP_NODELIST": "n[3-4]"}
    assert rendezvous(slurm) == Rendezvous("n3", 21234)
