"""Runs that are killed again and again, compared with the same runs left alone.

`PYTHONPATH=. python tests/kill_loop.py [CASE ...]` prints what it did as JSON; exit code 1 if a run
differs. Each run is a fork of this process, which has torch loaded and has not used it.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny import NETWORKS, call, small_network, the_same

from frcnn import train
from frcnn.training import launch  # noqa: F401 (loads all that a run needs, once for all of them)
from frcnn.training.checkpoints import Checkpoints

torch.set_num_threads(1)

COMMON = ["trainer.log_every=4", "trainer.checkpoint_minutes=0.002"]
# Every sampler once, each with another thing that a run can be made of.
CASES = {
    "random": ["trainer.workers=2", "trainer.accumulate=2", "data.train_images=16"],
    "ohem": ["sampler/rpn=ohem", "augmentation=scale_jitter"],
    "ohem_quota": ["trainer.workers=1", "augmentation=flip_color"],
    "hard_negative": ["trainer.checkpoint_minutes=10", "trainer.eval_every=2"],
    "iou_balanced": ["model.min_size=[40,48,56]"],
    "instance_balanced": ["trainer.patience=1", "trainer.epochs=4"],
    "libra": ["optimizer=adamw", "optimizer.lr=0.001"],
    "pisa": ["box_loss=carl", "trainer.max_steps=9"],
    "all": ["loss=ghm", "box_loss=ghm_r", "trainer.accumulate=2"],
    "effective_prime": ["weigher/rcnn=swn", "trainer.max_steps=9"],
    "ofb": ["data.sampler=class_aware", "loss/rcnn=seesaw"],
    "guided_all": ["trainer.checkpoint_minutes=0"],
}
RETINANET = ["model=retinanet_resnet18_fpn", "sampler/dense=ohem", "loss/dense=ghm_c"]
KILLS = 8  # a case: every second one by the clock, the others at a file operation
STOPS = 3  # a case: SIGTERM or Ctrl-C to all its processes
# A run of four steps that is killed before each of its file operations in turn.
SHORT = ["data.train_images=4", "trainer.checkpoint_minutes=0"]
# The AP of a validation by the best one before: so few steps find nothing, and best.pt would be
# written once. It is replaced after the second validation and kept after the third.
SCRIPTED_AP = {None: 0.1, 0.1: 0.3}
LAST_AP = 0.2


class Case:
    """One command line, its run left alone and its run that is not.

    Args:
        name: of the folders.
        overrides: the command line.
        root: a folder to work in.
    """

    def __init__(self, name: str, overrides: Sequence[str], root: Path) -> None:
        small = NETWORKS["retinanet" if RETINANET[0] in overrides else "faster_rcnn"]
        self.command = [*small, *COMMON, *overrides]
        self.straight, self.cut = root / f"{name}-straight", root / f"{name}-cut"
        self.rng = random.Random(name)
        self.counts: Counter[str] = Counter()
        self.groups: list[int] = []
        began = time.monotonic()
        self.operations = self._count_operations()
        self.seconds = time.monotonic() - began

    def at_random(self) -> Counter[str]:
        """Kill and stop at random; raises AssertionError where the two runs differ."""
        while self.counts["kill -9 by the clock"] < KILLS // 2:
            self._signal(signal.SIGKILL)
        while self.counts["kill -9 at a file operation"] < KILLS - KILLS // 2:
            self._kill_at_operation(self.rng.randint(1, self.operations))
        while self.counts["SIGTERM"] + self.counts["SIGINT"] < STOPS:
            self._signal(self.rng.choice([signal.SIGTERM, signal.SIGINT]))
        self._finish()
        self._no_process_is_left()
        return self.counts

    def at_every_operation(self) -> Counter[str]:
        """Kill before each file operation of the run, and let it go on."""
        for number in range(1, self.operations + 1):
            self._kill_at_operation(number)
            self._finish()
        return self.counts

    def _start(self, folder: Path, watch: Callable[[str], None] | None = None) -> int:
        """The process of a run; ``watch`` is called before each of its file operations."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                output = os.open(f"{folder}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                if watch is not None:
                    watch_files(folder, watch)
                code = call(train.main, *self.command, f"hydra.run.dir={folder}")
            except KeyboardInterrupt:  # before the command listens; Python would end so by itself
                code = 128 + signal.SIGINT
            except Exception:
                traceback.print_exc()
            finally:  # nothing of the parent's may run twice
                os._exit(code)
        self.groups.append(child)
        return child

    def _wait(self, child: int) -> int:
        """The exit code of a run; one that came to its end is compared and removed."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            assert the_same(self.cut, self.straight), f"{self.cut} differs from {self.straight}"
            status = json.loads((self.cut / "status.json").read_text())
            assert status["status"] == "COMPLETED"
            assert not list(self.cut.rglob("*.part")), "a half-written file was left"
            shutil.rmtree(self.cut)
            self.counts["runs compared"] += 1
        return code

    def _finish(self) -> None:
        code = self._wait(self._start(self.cut))
        assert code == 0, f"exit code {code}, see {self.cut}.out"

    def _count_operations(self) -> int:
        with tempfile.TemporaryFile() as marks:
            child = self._start(self.straight, lambda _: os.write(marks.fileno(), b"."))
            assert os.waitpid(child, 0)[1] == 0, f"see {self.straight}.out"
            return os.fstat(marks.fileno()).st_size

    def _kill_at_operation(self, number: int) -> None:
        """Kill -9 before the run's file operation of this number, if it gets that far."""
        before = itertools.count(1)
        with tempfile.TemporaryFile() as last:

            def watch(operation: str) -> None:
                if next(before) == number:
                    os.write(last.fileno(), operation.encode())
                    os.kill(os.getpid(), signal.SIGKILL)

            if self._wait(self._start(self.cut, watch)) == -signal.SIGKILL:
                last.seek(0)
                self.counts["kill -9 at a file operation"] += 1
                self.counts[f"before {last.read().decode()}"] += 1

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal at a random moment, if the run lasts that long."""
        child = self._start(self.cut)
        time.sleep(self.rng.uniform(0, self.seconds))
        if number == signal.SIGKILL:
            os.kill(child, number)  # its workers have to notice
        else:
            os.killpg(os.getpgid(child), number)
        began = time.monotonic()
        code = self._wait(child)
        if code == 0:
            return  # it was done before
        # A signal ends a process that has not begun its run as it does any other.
        allowed = {-number, 128 + number} if number != signal.SIGKILL else {-number}
        assert code in allowed, f"exit code {code} after {number.name}, see {self.cut}.out"
        assert time.monotonic() - began < 10, f"took its time to leave after {number.name}"
        self.counts["kill -9 by the clock" if number == signal.SIGKILL else number.name] += 1

    def _no_process_is_left(self) -> None:
        end = time.monotonic() + 15  # a worker looks for its parent every five seconds
        for group in self.groups:
            while is_alive(group):
                assert time.monotonic() < end, f"process group {group} is still there"
                time.sleep(0.2)


def watch_files(folder: Path, watch: Callable[[str], None]) -> None:
    """Call ``watch`` before files below a folder are opened, renamed, cut, removed and synced."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.truncate", "os.remove") and str(folder) in str(
            arguments[0]
        ):
            watch(f"{event.removeprefix('os.')} {Path(str(arguments[0])).name}")

    def sync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        watch(f"fsync {'the folder' if name in (folder.name, 'checkpoints') else name}")
        real(descriptor)

    os.fsync = sync
    sys.addaudithook(hook)


@contextmanager
def scripted_ap() -> Iterator[None]:
    """What is best goes by the script; the records keep what was measured."""
    real = Checkpoints.keep_best

    def scripted(self: Checkpoints, ap: float | None) -> None:
        real(self, SCRIPTED_AP.get(self.best["AP"], LAST_AP))

    Checkpoints.keep_best = scripted
    try:
        yield
    finally:
        Checkpoints.keep_best = real


def is_alive(group: int) -> bool:
    """Whether a process of this group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main(names: Sequence[str]) -> None:
    """Play the named cases, or all."""
    root = Path(tempfile.mkdtemp())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may come ignored
    counts: Counter[str] = Counter()
    with small_network(), scripted_ap():
        for name in names or [*CASES, "retinanet", "every operation"]:
            began = time.monotonic()
            if name in CASES:
                counts += Case(name, [f"sampler={name}", *CASES[name]], root).at_random()
                counts["samplers"] += 1
            elif name == "retinanet":
                counts += Case(name, RETINANET, root).at_random()
            else:
                counts += Case(name, SHORT, root).at_every_operation()
            print(f"{name}: the same, {time.monotonic() - began:.0f} s", file=sys.stderr)
    shutil.rmtree(root)
    print(json.dumps({"kills": kills(counts), **counts}, indent=2))


def kills(counts: Counter[str]) -> int:
    """How often a run was killed by kill -9."""
    return sum(number for name, number in counts.items() if name.startswith("kill -9"))


if __name__ == "__main__":
    main(sys.argv[1:])
