"""Two processes with batches of 2 against one with a batch of 4: losses, weights, metrics."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import one_fails, one_is_killed, run_in_two, sums
from tiny import SMALL, composed, lines, small_network, without_times

from frcnn import checkpoint
from frcnn.cluster import address, first_host, place
from frcnn.config import CONF
from frcnn.data import AspectGroupedBatches
from frcnn.errors import UserError
from frcnn.launch import start
from frcnn.run import run
from frcnn.validation import merged

# One of each way in which a loss or a sampler looks at the batch.
QUICK = (
    "sampler=random",
    "sampler=pisa",
    "sampler=guided_all",
    "loss=ghm_c",
    "loss=focal_sigmoid",
    "loss.rcnn.class_weights=batch loss.rcnn.keep_scale=true",
    "box_loss=carl",
    "box_loss=carl box_loss.rcnn.added=false",
    "trainer.accumulate=2",
)
# No object anywhere; and a last batch that leaves one process without an image.
UNEVEN = {"nothing": "data.num_objects=[0,0]", "odd": "data.train_images=13"}
ALL = sorted(
    f"{group}={file.stem}"
    for group in ("sampler", "loss", "box_loss")
    for file in (Path(CONF) / group).glob("*.yaml")
)
COMMON = ("trainer.workers=0", "trainer.epochs=1", "optimizer.lr=0.005")


def composed_for(case: str, batch_size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """A tiny run; its budgets are left out, for not all samplers have one."""
    small = [override for override in SMALL if "batch_size_per_image" not in override]
    budgets = ("budget.rpn=32", "budget.rcnn=16", f"trainer.batch_size={batch_size}")
    return composed(*small, *COMMON, *budgets, "data.num_objects=[0,3]", *case.split())


def slug(case: str) -> str:
    return re.sub(r"\W+", "-", case)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    cases = {slug(case): case for case in QUICK} | UNEVEN
    run_in_two({name: composed_for(case, 2) for name, case in cases.items()}, folder)
    return folder


def assert_same(two: Path, one: Path) -> None:
    """Weights, loss states, BatchNorm's statistics and every record but the loss of validation."""
    first, second = (checkpoint.load(path / "checkpoints/last.pt") for path in (two, one))
    torch.testing.assert_close(first["model"], second["model"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first["losses"], second["losses"], rtol=1e-5, atol=1e-5)
    records = [
        [r for r in without_times(lines(path)) if not any("sampling" in key for key in r)]
        for path in (two, one)
    ]
    assert len(records[0]) == len(records[1]) >= 3
    for ours, theirs in zip(*records, strict=True):
        # Validation's batches are those of a process, and its loss is a mean over batches.
        shown = {k for k in theirs if "val/loss" not in k and theirs[k] is not None}
        assert {k: ours[k] for k in shown} == pytest.approx(
            {k: theirs[k] for k in shown}, rel=1e-5, abs=1e-5
        )


@pytest.mark.parametrize("case", QUICK)
def test_two_processes_are_one(quick: Path, tmp_path: Path, case: str) -> None:
    with small_network():
        run(*composed_for(case, 4), tmp_path)
    assert_same(quick / slug(case), tmp_path)


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_data_hangs_nobody(quick: Path, name: str) -> None:
    records = [record for record in lines(quick / name) if "train/loss" in record]
    assert [record["step"] for record in records] == list(range(1, 5 if name == "odd" else 4))
    assert all(np.isfinite(record["train/loss"]) for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_two_processes_are_one_for_every_name(tmp_path: Path, half: int) -> None:
    cases = ALL[half::2]
    run_in_two({slug(case): composed_for(case, 2) for case in cases}, tmp_path)
    for case in cases:
        with small_network():
            run(*composed_for(case, 4), tmp_path / "one" / slug(case))
        assert_same(tmp_path / slug(case), tmp_path / "one" / slug(case))


def test_what_processes_say_to_each_other() -> None:
    slope, rows, names, said = start(2, sums, 3.0)
    assert slope == 3.0 * 2 * 2 * 1
    assert rows == [0, 1, 0, 1, 2]
    assert names == ["process 0", "process 1"]
    assert said == "said by 0"


def test_the_error_of_the_process_that_fails_is_the_error() -> None:
    with pytest.raises(UserError, match=r"^a.png: no such image"):
        start(2, one_fails)


def test_a_killed_process_ends_the_others() -> None:
    with pytest.raises(UserError, match="process 1 of 2 was ended by SIGKILL"):
        start(2, one_is_killed)


def test_every_image_is_of_one_process() -> None:
    shares = [AspectGroupedBatches(np.ones(13), 4, 0, rank, 3) for rank in range(3)]
    whole = AspectGroupedBatches(np.ones(13), 4, 0).batches(0)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(key for part in parts for key in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert any(not part for share in shares for part in share)  # 13 = 3 x 4 + 1


def test_parts_of_a_validation_add_up() -> None:
    parts = [
        ([{"image_id": 0}, {"image_id": 1}, {"image_id": 4}], {"loss": 2.0}),
        ([{"image_id": 2}], {"loss": 4.0}),
        ([], {"loss": 0}),
    ]
    detections, losses = merged(parts)
    assert [found["image_id"] for found in detections] == [0, 1, 2, 4]
    assert losses == {"loss": pytest.approx((3 * 2 + 1 * 4) / 4)}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, (3, 4, 1)),
        ({"SLURM_NTASKS": "4"}, None),  # a shell of salloc or sbatch: no task of srun
    ],
)
def test_the_place_that_a_launcher_gives(variables, expected) -> None:
    here = place(variables)
    assert (here and (here.rank, here.size, here.local_rank)) == expected


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[07-09,12],cpu1", "gpu07"), ("a1,a2", "a1"), ("one", "one"), ("r[1,3]n-ib", "r1n-ib")],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_where_processes_meet() -> None:
    assert address({"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == {
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }
    slurm = {"SLURM_JOB_ID": "41234", "SLURM_STEP_NODELIST": "n[3-4]"}
    assert address(slurm) == {"MASTER_ADDR": "n3", "MASTER_PORT": "21234"}
