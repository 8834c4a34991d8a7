"""A sweep on a Ray cluster of two nodes, one of which is lost (extra `ray`)."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import SMALL

ROOT = Path(__file__).parents[1]
SEEDS = ("0", "1", "2")
LINE = [
    *SMALL, "model=fasterrcnn_resnet18_fpn_slim", "trainer.epochs=20", "trainer.max_steps=12",
    "data.train_images=8", "trainer.checkpoint_minutes=0", f"seed={','.join(SEEDS)}",
    "hydra/launcher=ray_cluster",
]  # fmt: skip


def starts(folder: Path) -> list[int]:
    """The step that each start of a run began with."""
    file = folder / "environment.json"
    return [start["step"] for start in json.loads(file.read_text())] if file.exists() else []


def wait_for_steps(folder: Path, runs: int, steps: int, sweep: subprocess.Popen[bytes]) -> None:
    """Wait until so many runs have logged so many steps; each step is saved before it is logged."""
    done = 0
    while done < runs:
        assert sweep.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
        lengths = [len(f.read_text().splitlines()) for f in folder.glob("*/metrics.jsonl")]
        done = sum(length > steps for length in lengths)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_runs_of_a_lost_node_go_on_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="extra ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    command = [sys.executable, "-m", "frcnn.train", "-m", *LINE, f"hydra.sweep.dir={tmp_path}",
               "hydra.sweep.subdir=${seed}",
               f"hydra.launcher.ray.init.address={cluster.address}"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        sweep = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for_steps(tmp_path, 2, 3, sweep)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert sweep.wait(timeout=1500) == 0, (tmp_path / "log").read_text()
    finally:
        sweep.kill()
        cluster.shutdown()
    done = {seed: starts(tmp_path / seed) for seed in SEEDS}
    lost = [steps for steps in done.values() if len(steps) == 2]
    assert len(lost) == 1 and 0 < lost[0][1] < 12, done
    statuses = [json.loads((tmp_path / s / "status.json").read_text())["status"] for s in SEEDS]
    assert statuses == ["COMPLETED"] * 3
    assert "0 finished before, 1 resumed, 2 new, 0 failed" in (tmp_path / "log").read_text()
