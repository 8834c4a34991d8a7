"""Sweeps: what a second start does with each run, named sweeps, and who else may start the jobs."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from tiny import SMALL, call, composed, options, small_network, voc, without_measured
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from experiments.report.csv_files import write_csv
from experiments.report.runs import Run, read
from frcnn import train
from frcnn.config.compose import CONF, one_line
from frcnn.errors import UserError
from frcnn.runfolder.sweeps import OUTCOME_FILE, Sweep, summed_up
from frcnn.training.loop import Engine
from frcnn.training.resume import Resumed, finished

ROOT = Path(CONF).parent
# Two steps a run.
LINE = [*SMALL, "trainer.epochs=1", "data.train_images=4", "trainer.log_every=2"]


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``sweep`` leaves its runs, in folders called after their seed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/sweep"


def sweep(*more: str) -> int:
    """The exit code; without -m, which the sweep's file says."""
    by_seed = "hydra.sweep.subdir=${seed}"
    return call(train.main, "sweep=quick", *LINE, "sampler=random", by_seed, *more)


def outcomes(capsys: pytest.CaptureFixture[str]) -> str:
    """What the last line says, on stdout where the sweep came to its end."""
    said = "".join(capsys.readouterr())
    return [line for line in said.splitlines() if " runs in " in line][-1].rpartition(": ")[2]


def told(file: Path) -> Any:
    return json.loads(file.read_text())


@contextmanager
def stopped_in_the_second_run() -> Iterator[None]:
    """SIGTERM in its first step."""
    update, steps = Engine._update, count(1)

    def stopped(*arguments: Any) -> Any:
        if next(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return update(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_update", stopped)
        yield


def test_a_sweep_started_again_skips_what_is_finished_and_resumes_the_rest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_job_end = Sweep.on_job_end
    with stopped_in_the_second_run():
        assert sweep() == 143
    assert outcomes(capsys) == "0 finished before, 0 resumed, 1 new, 0 failed, 1 unfinished"
    done = folder / "0"
    files = ["checkpoints/last.pt", "metrics.jsonl", "environment.json", "detections.npz"]
    kept = {done / name: (done / name).read_bytes() for name in files}
    summary = told(done / "summary.json") | {"AP": 0.5, "best": {"AP": 0.75, "step": 1}}
    (done / "summary.json").write_text(json.dumps(summary))
    shutil.copytree(done, folder / "2")  # a run of another seed: its job will be refused
    shutil.copytree(done, folder / "3")  # none of the jobs'

    returned = []

    def seen(callback: Sweep, **what: Any) -> None:
        if what["job_return"].status.name == "COMPLETED":
            returned.append(what["job_return"].return_value)
        on_job_end(callback, **what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sweep, "on_job_end", seen)
        assert sweep("seed=0,2,1") == 2
    out, error = capsys.readouterr()
    assert out.endswith("runs in runs/sweep: 1 finished before, 1 resumed, 0 new, 1 failed\n")
    assert "finished before: 0, AP 50.0 AP50" in error
    assert returned == [0.75, told(folder / "1/summary.json")["best"]["AP"]]
    assert told(done / "summary.json") == summary
    assert {file: file.read_bytes() for file in kept} == kept
    assert [told(folder / n / "status.json")["status"] for n in "012"] == ["COMPLETED"] * 3
    starts = [[start["step"] for start in told(folder / n / "environment.json")] for n in "012"]
    assert starts == [[0], [0, 1], [0]]
    assert yaml.safe_load((folder / "2/.hydra/config.yaml").read_text())["seed"] == 2
    seeds = {run.name: run.seed for run in read(folder)}
    assert seeds == {"0": 0, "1": 1, "2": 0, "3": 0}  # the refused command's is not told


def test_a_sweep_leaves_out_what_a_csv_says_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = {"commit": "0123456789", "dirty": False}
    monkeypatch.setattr("frcnn.runfolder.environment.commit", lambda: now)
    made = {"commit": "01234567"}
    folder.parent.mkdir()
    file = folder.parent / "runs.csv"
    write_csv([Run("0", "COMPLETED", figures={"AP": 0.25}, made=made)], file)
    assert sweep("seed=0,1", f"done={file}") == 0
    assert outcomes(capsys) == "1 finished before, 0 resumed, 1 new, 0 failed"
    assert [run.name for run in read(folder)] == ["1"]
    assert sweep("seed=0", "done=missing.csv") == 1
    assert "done=missing.csv: cannot be read" in "".join(capsys.readouterr())


def test_a_finished_run_stays_completed_where_its_data_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: Any) -> None:
        raise UserError("no such folder")

    assert sweep("seed=0") == 0
    before = told(folder / "0/status.json")
    monkeypatch.setattr("frcnn.training.run.dataset", gone)
    assert sweep("seed=0") == 1
    assert outcomes(capsys) == "0 finished before, 0 resumed, 0 new, 1 failed"
    assert told(folder / "0/status.json") == before
    assert before["status"] == "COMPLETED" and not (folder / "0/traceback.txt").exists()


def test_a_sweep_goes_on_after_its_data_have_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def moved(root: str) -> int:
        by_seed = ["hydra.sweep.dir=runs/sweep", "hydra.sweep.subdir=${seed}"]
        return call(train.main, "-m", *line, "seed=0,1", f"data.root={root}", *by_seed)

    line = [text for text in SMALL if not text.startswith("data.") or text.startswith("data.m")]
    line.append("data=voc")  # one image: a step per epoch
    voc(tmp_path / "old", ["square", "circle"])
    with stopped_in_the_second_run():
        assert moved("old") == 143
    (tmp_path / "old").rename(tmp_path / "new")
    capsys.readouterr()
    assert moved("new") == 0
    out, error = capsys.readouterr()
    assert out.endswith("runs in runs/sweep: 1 finished before, 1 resumed, 0 new, 0 failed\n")
    assert "data.root: the data were in 'old' and are now in 'new'" in error
    voc(tmp_path / "other", ["square", "dog"])
    assert moved("other") == 2
    out, error = capsys.readouterr()
    assert out.endswith("runs in runs/sweep: 0 finished before, 0 resumed, 0 new, 2 failed\n")
    assert "data.root: 'new' -> 'other', with other training images" in error


def test_a_sweep_called_after_the_time_says_how_it_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["-m", *LINE, "seed=0,1"]
    with stopped_in_the_second_run():
        assert call(train.main, *line) == 143
    said = "".join(capsys.readouterr())
    assert re.search("stopped after step 1$", said, re.MULTILINE)  # the sweep says how to go on
    (hint,) = hints(said)
    assert [run.name for run in folder.parent.iterdir()] == [hint.removeprefix("run_name=")]
    assert call(train.main, *line, hint) == 0
    said = "".join(capsys.readouterr())
    assert "1 finished before, 1 resumed, 0 new, 0 failed" in said and not hints(said)
    assert len(list(folder.parent.iterdir())) == 1


def hints(said: str) -> list[str]:
    """The argument that a sweep's last words ask for."""
    return re.findall(r"to go on: the same command with (run_name=\S+)$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("notes", "end", "says"),
    [
        (["new", "resumed", "finished before"], None, False),
        (["new", "failed"], None, True),  # as Optuna's search ends
        (["new", "failed"], ValueError(), True),
        (["new"], SystemExit(143), True),  # between two jobs
        (["unfinished"], KeyboardInterrupt(), True),
        ([], ValueError(), False),  # refused before a job began: nothing to go on from
    ],
)
@pytest.mark.parametrize("by_clock", [True, False])
def test_a_sweep_says_how_it_goes_on_where_it_must(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    notes: list[str],
    end: BaseException | None,
    says: bool,
    by_clock: bool,
) -> None:
    caplog.set_level("INFO")
    with nullcontext() if end is None else pytest.raises(type(end)), summed_up():
        Sweep.folder, Sweep.named_by_time = tmp_path, by_clock
        for number, note in enumerate(notes):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / OUTCOME_FILE).write_text(note)
        if end:
            raise end
    expected = [f"run_name={tmp_path.name}"] if says and by_clock else []
    assert hints("\n".join(caplog.messages)) == expected


@pytest.mark.parametrize(
    ("override", "by_clock"),
    [
        ("seed=1", True),
        ("run_name=mine", False),
        ("run_name=7", False),
        ("sweep=quick", False),
        ("sweep=samplers_bccd", False),
        ("hydra.sweep.dir=mine", False),
        ("hydra.sweep.dir=other/${run_name}", False),  # not where run_name=NAME would look
    ],
)
def test_a_sweep_knows_whether_it_is_called_after_the_time(
    monkeypatch: pytest.MonkeyPatch, override: str, by_clock: bool
) -> None:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose("train", [override], return_hydra_config=True)
    monkeypatch.setattr(Sweep, "named_by_time", not by_clock)
    Sweep().on_multirun_start(config)
    assert Sweep.named_by_time == by_clock


def test_a_run_is_finished_for_the_command_that_made_it(tmp_path: Path) -> None:
    config = {"trainer": {"epochs": 2}, "evaluation": {"backend": "auto"}}
    own = Resumed({"config": config}, own=True)
    assert finished(own, config, tmp_path) is None  # killed before its summary
    (tmp_path / "summary.json").write_text('{"AP": 0.5}')
    assert finished(own, config, tmp_path) == {"AP": 0.5}
    assert finished(None, config, tmp_path) is None
    assert finished(own._replace(own=False), config, tmp_path) is None
    for group, change in (("trainer", {"epochs": 3}), ("evaluation", {"backend": "pycocotools"})):
        assert finished(own, config | {group: change}, tmp_path) is None


def jobs(name: str, *more: str) -> list[tuple[str, ...]]:
    """What Hydra starts for a named sweep and overrides beside it."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose("train", [f"sweep={name}"], return_hydra_config=True)
        params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides([*params, *more]), None)
    assert config.hydra.mode.name == "MULTIRUN"
    if name.endswith("bccd"):
        choices = config.hydra.runtime.choices
        assert (choices.experiment, choices.data) == ("bccd_study", "bccd")
        assert config.run_name == "bccd_samplers"  # all in one folder, with one baseline
    return [tuple(job) for job in batch]


def test_named_sweeps_start_every_preset_under_three_seeds() -> None:
    assert jobs("quick") == [
        (f"seed={s}", f"sampler={x}") for s in (0, 1) for x in ("random", "ohem")
    ]
    found = [*jobs("samplers_bccd"), *jobs("losses_bccd"), *jobs("box_losses_bccd")]
    assert found == [
        (f"seed={seed}", f"{group}={option}")
        for group in ("sampler", "loss", "box_loss")
        for seed in range(3)
        for option in options(group)
        if option not in ("cross_entropy", "smooth_l1")
    ]
    more = jobs("samplers_bccd", "seed=0,1,2,3,4")
    number = len(options("sampler"))
    assert len(more) == 5 * number and set(found[: 3 * number]) < set(more)


def test_what_wandb_would_run_composes() -> None:
    node = yaml.safe_load((ROOT / "experiments/wandb_sweep.yaml").read_text())
    space = node["parameters"]
    assert node["metric"] == {"name": "val/AP", "goal": "maximize"}
    for sampler, rate in (("pisa", 0.0123456789), ("random", 2e-05)):
        assert sampler in space["sampler"]["values"]
        draw = {"sampler": {"value": sampler}, "optimizer.lr": {"value": rate}}
        assert draw.keys() == space.keys()
        words = create_sweep_command_args({"args": draw})
        words |= {"env": ["/usr/bin/env"], "interpreter": ["python"]}
        command = [
            part
            for word in create_sweep_command(node["command"])
            for part in (words[word[2:-1]] if word.startswith("${") else [word])
        ]
        assert command[:4] == ["/usr/bin/env", "python", "-m", "frcnn.train"]
        config, choices = composed(*command[4:])
        assert (choices["sampler"], choices["experiment"]) == (sampler, "bccd_search")
        assert (config["data"]["train_split"], config["data"]["val_split"]) == ("train", "val")
        assert config["optimizer"]["lr"] == rate and config["wandb"]["mode"] == "online"


def test_a_search_sees_no_image_that_a_study_reports(bccd: Path) -> None:
    def images(experiment: str, *splits: str) -> set[str]:
        data, _ = composed(f"experiment={experiment}", f"data.root={bccd}")
        lists = (bccd / f"ImageSets/Main/{data['data'][split]}.txt" for split in splits)
        return {name for file in lists for name in file.read_text().split()}

    searched = images("bccd_search", "train_split", "val_split")
    for study in ("bccd", "bccd_study"):
        assert searched == images(study, "train_split")
        assert not searched & images(study, "val_split")
    assert not images("bccd_search", "train_split") & images("bccd_search", "val_split")


@pytest.mark.parametrize(
    ("says", "extra"),
    [
        ("In 'hydra/launcher/cores': Could not load 'hydra/launcher/joblib'.", "joblib"),
        ("In 'hydra/launcher/ray_cluster': Could not load 'hydra/launcher/ray'.", "ray"),
        ("Could not find 'hydra/launcher/submitit_slurm' Available options", "submitit"),
        ("In 'hydra/config': Could not find 'hydra/sweeper/optuna'", "optuna"),
    ],
)
def test_a_missing_plugin_says_how_to_get_it(says: str, extra: str) -> None:
    assert one_line("train", ValueError(says)).endswith(f": pip install -e '.[{extra}]'")
    extras = (ROOT / "pyproject.toml").read_text()
    assert f'\n{extra} = ["hydra-{extra}-' in extras


def launched(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A sweep of one step a run with the slim network, as typed."""
    line = [*LINE, "model=fasterrcnn_resnet18_fpn_slim", "trainer.max_steps=1", *more]
    command = [sys.executable, "-m", "frcnn.train", "-m", *line, f"hydra.sweep.dir={folder}"]
    command += ["hydra.sweep.subdir=${seed}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False
    )


@pytest.mark.slow
def test_cores_runs_jobs_in_other_processes(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="extra joblib")
    more = ("hydra/launcher=cores", "trainer.workers=1")
    done = launched(tmp_path, "seed=0,-1", *more)  # one of them is refused
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: seed: expected")
    assert done.stdout.endswith(": 0 finished before, 0 resumed, 1 new, 1 failed\n")
    statuses = [told(tmp_path / seed / "status.json")["status"] for seed in ("0", "-1")]
    assert statuses == ["COMPLETED", "FAILED"]
    assert "ConfigError" in (tmp_path / "-1/traceback.txt").read_text()
    owners = {(tmp_path / seed / ".lock").read_text() for seed in ("0", "-1")}
    assert len(owners) == 2


@pytest.mark.slow
def test_submitit_runs_jobs_and_skips_them(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="extra submitit")
    for seeds, ends in (
        ("0", "0 resumed, 1 new, 0 failed"),
        ("0,-1", "0 resumed, 0 new, 1 failed"),
    ):
        done = launched(tmp_path, f"seed={seeds}", "hydra/launcher=submitit_local")
        assert done.returncode == (2 if "-1" in seeds else 0), done.stderr
        assert done.stdout.endswith(f": {seeds.count(',')} finished before, {ends}\n")
    assert told(tmp_path / "0/status.json")["status"] == "COMPLETED"


@pytest.mark.slow
def test_submitit_queues_a_job_again_whose_time_is_up(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="extra submitit")
    with ThreadPoolExecutor() as pool:
        line = ("seed=0", "hydra/launcher=submitit_local", "trainer.max_steps=40")
        sweeping = pool.submit(launched, tmp_path, *line)
        while not (tmp_path / "0/checkpoints/last.pt").exists():
            assert not sweeping.done(), sweeping.result().stderr
            time.sleep(0.05)
        os.kill(int((tmp_path / "0/.lock").read_text()), signal.SIGUSR2)  # as submitit says it
        done = sweeping.result()
    assert done.returncode == 0, done.stderr
    starts = [start["step"] for start in told(tmp_path / "0/environment.json")]
    assert len(starts) == 2 and 0 <= starts[1] < 40
    assert told(tmp_path / "0/status.json")["status"] == "COMPLETED"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_optuna_gets_each_run_s_ap_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="extra optuna")
    real, folders = Engine.train_step, list[Path]()

    def fails_once(engine: Engine, *arguments: Any) -> Any:
        if engine.folder not in folders:
            folders.append(engine.folder)
        return 1 / 0 if folders.index(engine.folder) == 1 else real(engine, *arguments)

    monkeypatch.setattr(Engine, "train_step", fails_once)
    line = [*LINE, "sweep=learning_rate", f"hydra.sweep.dir={tmp_path}"]
    assert call(train.main, *line, "hydra.sweeper.n_trials=3") == 0
    assert outcomes(capsys) == "0 finished before, 0 resumed, 2 new, 1 failed"
    assert call(train.main, *line, "hydra.sweeper.n_trials=4") == 0
    assert outcomes(capsys) == "2 finished before, 0 resumed, 1 new, 1 failed"
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    summaries = [told(file) for file in tmp_path.glob("*/summary.json")]
    assert len(summaries) == 3
    assert best["best_value"] == max(summary["best"]["AP"] for summary in summaries)


# A sweep in which the update of this number is never done: the process is killed there.
KILLED = """
import itertools, os, signal, sys
from frcnn import train
from frcnn.training.loop import Engine
from tiny import call, small_network
update, numbers, last = Engine._update, itertools.count(1), int(sys.argv[1])
def killed(*arguments):
    if next(numbers) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(*arguments)
Engine._update = killed
with small_network():
    sys.exit(call(train.main, *sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_started_again_gives_the_same_table(tmp_path: Path) -> None:
    def run(name: str, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
        line = ["-m", *SMALL, "data.train_images=6", "sampler=random,ohem", "seed=0,1"]
        command = [sys.executable, "-c", KILLED, str(kill_at), *line]
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, f"hydra.sweep.dir={tmp_path / name}"],
            env=environment, capture_output=True, text=True, timeout=250, check=False,
        )  # fmt: skip

    def table(name: str) -> list[dict[str, str]]:
        file = tmp_path / f"{name}.csv"
        write_csv(read(tmp_path / name), file)
        with file.open(newline="") as rows:
            return [without_measured(row) for row in csv.DictReader(rows)]

    straight = run("straight")
    assert straight.returncode == 0, straight.stderr
    # Three steps an epoch, two epochs: after the second run's first validation, in a step.
    assert run("cut", kill_at=6 + 5).returncode == -signal.SIGKILL
    assert [row["status"] for row in table("cut")] == ["COMPLETED", "RUNNING"]
    again = run("cut")
    assert again.stdout.endswith(": 1 finished before, 1 resumed, 2 new, 0 failed\n"), again.stderr
    found = table("cut")
    assert found == table("straight")
    assert [row["status"] for row in found] == ["COMPLETED"] * 4
    assert len({row["curve"] for row in found}) > 1  # runs that learnt something differ
