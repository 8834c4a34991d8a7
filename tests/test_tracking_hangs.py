"""W&B that does not answer: a run ends in time, with its exit code and one line."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from wandb_server import silent_server, wandb_server

from frcnn.time_limit import within
from frcnn.tracking import service, tracker

# A run of a tracker alone. What happens to W&B once it has begun is named by the first argument.
RUN = """
import logging, os, signal, sys
from pathlib import Path
from frcnn.tracking import tracker
from wandb.sdk import wandb_setup

logging.basicConfig(level=logging.INFO, format="%(message)s")
event, mode = sys.argv[1:]
tracker.CALL_SECONDS = tracker.FINISH_SECONDS = 3.0
options = {"mode": mode, "project": "test", "entity": None, "group": None, "name": None}
options |= {"method": "a", "tags": [], "dir": Path("wb")}
with tracker.Tracker(Path("run"), options, {"seed": 0}, {}) as tracking:
    tracking.log({"step": 1, "train/loss": 1.0})
    print("began", flush=True)
    sys.stdin.readline()
    if event == "stopped":
        os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGSTOP)
    for step in range(2, 5):
        tracking.log({"step": step, "train/loss": 1.0})
    tracking.summary({"best/AP": 0.5})
sys.exit(7)
"""


def run(folder: Path, event: str, mode: str, address: str, then: ExitStack) -> tuple[int, str]:
    """Exit code and stderr; ``then`` is closed when the run has begun."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "NETRC": str(folder / "netrc")}
    env |= {"PYTHONPATH": str(Path(tracker.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", RUN, event, mode], cwd=folder, env=env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        then.close()
        began = time.monotonic()
        _, error = process.communicate("\n", timeout=60)
        assert time.monotonic() - began < 30
    return process.returncode, error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "mode", "says"),
    [
        ("stopped", "offline", "wandb sync"),
        ("stopped", "online", "wandb sync"),
        ("server ends", "online", "wandb sync"),
        ("refused", "online", "going on offline, upload with `wandb sync`"),
        ("silent", "online", "going on offline, upload with `wandb sync`"),
    ],
)
def test_a_run_ends_in_time_whatever_wandb_does(
    tmp_path: Path, event: str, mode: str, says: str
) -> None:
    with ExitStack() as server:
        if event == "silent":
            address = server.enter_context(silent_server())
        else:
            address, _ = server.enter_context(wandb_server())
        if event == "refused":
            server.close()
        keep = ExitStack() if event in ("stopped", "silent") else server
        code, error = run(tmp_path, event, mode, address, keep)
    assert code == 7, error
    assert error.count(says) == 1 and "Traceback" not in error, error
    records = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in records] == [1, 2, 3, 4]
    assert list((tmp_path / "wb/wandb").glob("*run-*/*.wandb"))


def test_the_limits_end_a_run_within_a_minute() -> None:
    # The summary, the end of the run in W&B, and the end of its service, one after another.
    at_the_end = tracker.CALL_SECONDS + tracker.FINISH_SECONDS + service.TEARDOWN_SECONDS
    assert at_the_end < 60


def test_a_call_is_given_up_and_its_errors_are_raised() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["a"])
    with pytest.raises(TimeoutError):
        within(0.01, lambda: time.sleep(0.5))
