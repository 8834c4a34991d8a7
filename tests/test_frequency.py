"""AP of rare, common and frequent classes."""

import doctest
import json
import random
from pathlib import Path

import numpy as np
import pytest
from fabricated import fabricate
from tiny import SMALL, call, small_network

from experiments.report.csv_files import read_csv, write_csv
from experiments.report.runs import read
from experiments.report.study import study
from experiments.report.tables import tables
from experiments.table import row
from frcnn import evaluate, train
from frcnn.data import shapes
from frcnn.evaluation import frequency
from frcnn.evaluation.coco import format_table
from frcnn.evaluation.frequency import frequency_metrics, with_frequencies

KEYS = ("APr", "APc", "APf")


def test_the_example_holds() -> None:
    assert doctest.testmod(frequency).failed == 0


def test_against_a_loop() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        images = [chance.choice([0, 1, 9, 10, 50, 99, 100, 5000]) for _ in range(6)]
        aps = [chance.choice([None, chance.random()]) for _ in images]
        found = frequency_metrics({str(k): {"AP": ap} for k, ap in enumerate(aps)}, images)
        groups: dict[str, list[float]] = {"APr": [], "APc": [], "APf": []}
        used = set()
        for count, ap in zip(images, aps, strict=True):
            name = "APr" if count < 10 else "APc" if count < 100 else "APf"
            used.add(name)
            if ap is not None:
                groups[name].append(ap)
        if len(used) == 1:
            assert found == {}
            continue
        for name, values in groups.items():
            assert found[name] == (pytest.approx(np.mean(values)) if values else None)


def test_they_stand_before_the_classes_and_in_the_table() -> None:
    overall = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
    metrics = dict.fromkeys([*overall, "ARs", "ARm", "ARl"], 0.5)
    of_class = dict.fromkeys(("AP", "AP50", "AP75", "AP90", "AR"), 0.25)
    metrics["per_class"] = {"cat": of_class, "okapi": of_class | {"AP": 0.125}}
    found = with_frequencies(metrics, [200, 3])
    assert list(found)[-4:] == [*KEYS, "per_class"]
    first, second, *_ = format_table(found).splitlines()
    assert first.split()[-3:] == list(KEYS) and second.split()[-3:] == ["12.5", "–", "25.0"]
    assert with_frequencies(metrics, [200, 300]) == metrics


def test_images_of_each_class_are_counted_once() -> None:
    data = shapes("train", train_images=50, num_classes=5, num_objects=(0, 6))
    expected = [
        sum(k in set(data[i][1]["labels"].tolist()) for i in range(50)) for k in range(1, 6)
    ]
    assert data.class_images().tolist() == expected


def test_a_run_its_evaluation_and_its_report_have_them(tmp_path: Path) -> None:
    """Training images: some classes in fewer than ten, others in more."""
    tail = ["data.num_classes=8", "data.tail_exponent=2.0", "data.train_images=16"]
    folder = tmp_path / "run"
    with small_network():
        line = [*SMALL, *tail, "trainer.epochs=1", f"hydra.run.dir={folder}"]
        assert call(train.main, *line) == 0
        summary = json.loads((folder / "summary.json").read_text())
        assert [key for key in KEYS if key in summary] == list(KEYS)
        assert summary["APf"] is None and summary["APr"] is not None
        checkpoint = f"checkpoint={folder}/checkpoints/last.pt"
        assert call(evaluate.main, checkpoint, f"output={tmp_path}/out") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {key: metrics[key] for key in KEYS} == {key: summary[key] for key in KEYS}
    assert list(row(folder))[4:7] == list(KEYS)
    write_csv(read(tmp_path), tmp_path / "runs.csv")
    found = next(t for t in tables(study(read_csv(tmp_path / "runs.csv"))) if t.title == "Figures")
    assert list(found.columns)[-3:] == list(KEYS)


def test_differences_by_frequency_are_those_of_each_group_alone(tmp_path: Path) -> None:
    """Three seeds: ohem gains 5 on rare classes, loses 2 on common ones, and no more."""
    for seed, noise in enumerate((-0.001, 0.0, 0.001)):
        for sampler, rare, common in (("random", 0.20, 0.40), ("ohem", 0.25, 0.38)):
            off = noise if sampler == "ohem" else -noise
            groups = {"APr": rare + off, "APc": common + off, "APf": 0.6 + off}
            line = (f"sampler={sampler}", f"seed={seed}")
            fabricate(tmp_path / f"{sampler}{seed}", *line, **groups)
    found = study(read(tmp_path))
    assert found.verdicts_on("APr")["sampler=ohem"].difference.mean == pytest.approx(5)
    (table,) = (t for t in tables(found) if t.title.endswith("by frequency"))
    assert table.columns == ["method", *KEYS]
    ((method, rare, common, frequent),) = table.rows
    assert method == "sampler=ohem"
    assert rare.startswith("+5.0 (+") and rare.endswith("), better")
    assert common.startswith("-2.0 (-") and common.endswith("), worse")
    assert frequent.startswith("+0.0 (-") and frequent.endswith("), undecided")


def test_a_method_that_loses_half_of_the_rare_classes_has_learnt_and_is_tested(
    tmp_path: Path,
) -> None:
    """AP says whether a method learnt, not the AP of the rare classes."""
    for seed, noise in enumerate((-0.001, 0.0, 0.001)):
        for sampler, rare in (("random", 0.20), ("ohem", 0.08)):
            line = (f"sampler={sampler}", f"seed={seed}")
            fabricate(tmp_path / f"{sampler}{seed}", *line, APr=rare + noise, APc=0.4, APf=0.6)
    found = study(read(tmp_path))
    assert found.verdicts_on("APr")["sampler=ohem"].answer == "worse"
    assert found.verdicts["sampler=ohem"].answer == "undecided"


def test_a_study_of_one_frequency_has_no_such_table(tmp_path: Path) -> None:
    for sampler in ("random", "ohem"):
        fabricate(tmp_path / sampler, f"sampler={sampler}", APr=None, APc=None, APf=0.5)
    assert not [t for t in tables(study(read(tmp_path))) if t.title.endswith("by frequency")]
