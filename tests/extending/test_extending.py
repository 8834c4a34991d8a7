"""What a user can add from a package and a folder of their own, without a change to the project."""

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from extension import ByScore, Learned, SoftLabels
from extension.network import three_sites
from omegaconf import OmegaConf
from processes import CPU
from small import quick, samples
from tiny import SMALL, call, lines, small_network, the_same
from torch import Tensor

from frcnn import evaluate, train
from frcnn.evaluation.load import load_trained
from frcnn.losses import FocalSigmoid
from frcnn.parallel.group import join_group
from frcnn.runfolder import checkpoint
from frcnn.sites.assigners import Outputs, Unassigned
from frcnn.training.launch import local_ranks, start
from frcnn.training.loop import Engine
from frcnn.training.run import methods_optimizers, parameters_for

OWN = Path(__file__).parent / "conf"


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with small_network():
        yield


def trained(folder: Path, *options: str) -> dict[str, Any]:
    """``last.pt`` of a tiny run."""
    line = ["--config-dir", str(OWN), *SMALL, *options, f"hydra.run.dir={folder}"]
    assert call(train.main, *line) == 0
    return checkpoint.load(folder / "checkpoints/last.pt")


@contextmanager
def signal_after_five_steps(number: int) -> Iterator[None]:
    """Send this process a signal when a run's sixth step begins."""
    step = Engine.train_step

    def fatal(self: Engine, group: Any) -> Any:
        if self.step == 5:
            signal.raise_signal(number)
        return step(self, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "train_step", fatal)
        yield


def stopped(folder: Path, *options: str) -> None:
    """A tiny run that SIGTERM ends."""
    line = ["--config-dir", str(OWN), *SMALL, *options, f"hydra.run.dir={folder}"]
    with signal_after_five_steps(signal.SIGTERM):
        assert call(train.main, *line) == 143


def states(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(folder / "checkpoints/last.pt")["sites"]


def evaluated(folder: Path, output: Path, trust: str = "[extension]") -> int:
    """Exit code of ``frcnn.evaluate``; metrics.json is in ``output``."""
    options = [f"trust={trust}", f"output={output}", "device=cpu", "precision=fp32", "workers=0"]
    backend = "evaluation.backend=pycocotools"
    return call(
        evaluate.main, f"checkpoint={folder}/checkpoints/last.pt", backend, "batch_size=2", *options
    )


def test_a_sampler_with_arguments_of_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = trained(tmp_path, "sampler=banded", "sampler.rcnn.beta=3", "trainer.epochs=1")
    node = saved["config"]["sampler"]["rcnn"]
    assert node == {"_target_": "extension.Banded", "budget": 16, "width": 0.2, "beta": 3}
    assert saved["choices"]["sampler/rcnn"] == "banded"
    line = ["--config-dir", str(OWN), *SMALL, "sampler=banded", f"hydra.run.dir={tmp_path}/b"]
    assert call(train.main, *line, "sampler.rcnn.width=2") == 2
    assert "error: sampler.rcnn.width must be in (0, 1], got 2" in capsys.readouterr().err
    assert call(train.main, *line, "sampler.rcnn.width=wide") == 2
    assert "sampler.rcnn.width: expected a number, got 'wide'" in capsys.readouterr().err


def test_a_loss_of_a_foreign_package_trains_resumes_and_evaluates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trained(whole, "loss=counted")
    stopped(cut, "loss=counted")
    trained(cut, "loss=counted")
    assert the_same(cut, whole)
    assert evaluated(whole, tmp_path / "e", trust="[]") == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert (
        error.startswith("error: ")
        and "names extension.Counted" in error
        and "trust=[extension] runs it" in error
    )
    assert evaluated(whole, tmp_path / "e") == 0
    found = json.loads((tmp_path / "e/metrics.json").read_text())
    assert found["AP"] == json.loads((whole / "summary.json").read_text())["AP"]


def test_a_counter_counts_each_step_once_under_ohem(tmp_path: Path) -> None:
    saved = trained(tmp_path, "loss=counted", "sampler=ohem")
    state = saved["sites"]
    assert state["rcnn.class_loss.steps"].item() == saved["step"] == 12
    # Sixteen samples per image at most, two images per step.
    assert 0 < state["rcnn.class_loss.counts"].sum() <= 12 * 32


def test_a_soft_label_loss_and_an_assigner_that_reads_predictions(tmp_path: Path) -> None:
    saved = trained(tmp_path, "loss=soft", "assigner=by_score", "trainer.epochs=1")
    assert saved["config"]["assigner"]["rpn"]["_target_"] == "extension.ByScore"
    losses = [record["train/loss"] for record in lines(tmp_path) if "train/loss" in record]
    assert len(losses) == 6 and all(loss > 0 for loss in losses)
    loaded = load_trained(str(tmp_path / "checkpoints/last.pt"), "cpu", "fp32", trust=["extension"])
    assert type(loaded.detector.sites["rcnn"].assigner).__name__ == "ByScore"


def test_a_soft_label_loss_reads_the_assigner_s_soft_targets() -> None:
    kept = samples(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), [1, 0])
    losses = []
    for soft in (0.25, 1.0):
        kept.soft_targets = torch.full((2,), soft)
        losses.append(SoftLabels(power=0.5)(kept).tolist())
    # Background costs 2 less than the object: of the share 1/2 that is 1 less in all.
    assert losses[1][0] - losses[0][0] == pytest.approx(1)
    assert losses[1][1] == losses[0][1]  # background has none


@pytest.mark.parametrize(("scores", "labels"), [([0.9, 0.1], [2, 0]), ([0.1, 0.9], [0, 2])])
def test_an_assigner_that_reads_predictions_follows_their_scores(
    scores: list[float], labels: list[int]
) -> None:
    """The box of the best-scored class is on the object for one candidate, beside it for another.

    Both candidates are the same: their predictions alone tell them apart.
    """
    here, away = [0.0, 0, 10, 10], [30.0, 30, 40, 40]
    boxes, objects = torch.tensor([here, here]), torch.tensor([here])
    seen = Outputs(
        torch.tensor([[0.0, score, 0.5] for score in scores]),
        torch.tensor([[away, here, away]]).repeat(2, 1, 1),
    )
    candidates = Unassigned([boxes], [objects], [torch.tensor([2])], [objects[:0]])
    candidates.predict = lambda rows: Outputs(seen.scores[rows], seen.boxes[rows])
    found = ByScore(high=0.5)(candidates)
    assert found.labels.tolist() == labels
    assert found.soft_targets.tolist() == [float(label > 0) for label in labels]
    assert torch.equal(found.boxes, boxes)


def test_a_backbone_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="extra timm")
    options = ["model=fasterrcnn_timm", "model.backbone=test_resnet", "model.fpn_channels=16"]
    saved = trained(tmp_path, *options, "trainer.max_steps=2", "model.representation_size=16")
    own = timm.create_model("test_resnet").state_dict()
    assert sum(name.split("backbone.body.")[-1] in own for name in saved["model"]) > 10
    assert evaluated(tmp_path, tmp_path / "e", trust="[]") == 0


def test_a_detector_with_three_sites(tmp_path: Path) -> None:
    options = ["model=three_sites", "sampler/second=ohem", "site.second.budget=8"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    saved = trained(whole, *options)
    assert saved["config"]["sampler"]["second"]["batch_size_per_image"] == 8
    assert saved["config"]["sampler"]["rcnn"]["batch_size_per_image"] == 16
    record = next(record for record in lines(whole) if "train/loss" in record)
    assert {"train/loss_classifier", "train/loss_classifier_second"} <= record.keys()
    assert any("sampling/second/positive_iou" in record for record in lines(whole))
    stopped(cut, *options)
    trained(cut, *options)
    assert the_same(cut, whole)
    assert evaluated(whole, tmp_path / "e") == 0
    recorded = OmegaConf.load(whole / ".hydra/config.yaml")
    assert set(recorded.sampler) == set(recorded.site) == {"rpn", "rcnn", "second"}


def test_a_further_head_starts_at_its_loss_s_prior_and_is_known_as_a_predictor() -> None:
    detector = three_sites(4, name="fasterrcnn_resnet18_fpn", loss={"second": FocalSigmoid()})
    first, second = (
        head.box_predictor.cls_score.bias
        for head in (detector.roi_heads.first, detector.roi_heads.second)
    )
    assert second[1:].tolist() == pytest.approx([-math.log(99)] * 3)
    assert first.abs().max() < 1
    assert sum(name.startswith(detector.predictor) for name in detector.state_dict()) == 8


def test_three_sites_are_reported(tmp_path: Path) -> None:
    report = pytest.importorskip("experiments.report.__main__", reason="extra report")
    for seed in (0, 1):
        for sampler in ("random", "ohem"):
            options = [f"sampler={sampler}", f"seed={seed}", "trainer.max_steps=2"]
            trained(tmp_path / f"{sampler}{seed}", "model=three_sites", *options)
    assert call(report.main, str(tmp_path)) == 0
    written = (tmp_path / "report/report.md").read_text()
    assert "ohem" in written and "classifier_second" in written


def test_a_reader(tmp_path: Path) -> None:
    saved = trained_on_squares(tmp_path)
    assert saved["class_names"] == ["square"]
    assert evaluated(tmp_path, tmp_path / "e") == 0


def trained_on_squares(folder: Path) -> dict[str, Any]:
    small = [option for option in SMALL if not option.startswith("data.")]
    line = ["--config-dir", str(OWN), *small, "data=squares", "trainer.max_steps=2"]
    assert call(train.main, *line, f"hydra.run.dir={folder}") == 0
    return checkpoint.load(folder / "checkpoints/last.pt")


WEIGHER = ("weigher=learned", "sampler=ohem", "trainer.checkpoint_minutes=0")


def killed(here: Any, store: Any, folder: Path) -> None:
    """A process whose run kill -9 ends after five steps."""
    with small_network(), signal_after_five_steps(signal.SIGKILL):
        trained(folder, *WEIGHER)


def test_learned_weights_change_and_survive_a_kill(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    saved = trained(whole, *WEIGHER)
    assert saved["sites"]["rcnn.weigher.s"].abs().min() > 1e-3
    assert saved["own_optimizers"].keys() == {"rpn.weigher", "rcnn.weigher"}
    with pytest.raises(Exception, match="SIGKILL"):
        start(local_ranks(1), killed, cut)
    assert checkpoint.load(cut / "checkpoints/last.pt")["step"] == 5
    trained(cut, *WEIGHER)
    assert the_same(cut, whole)
    assert all(torch.equal(value, states(whole)[name]) for name, value in states(cut).items())


def test_the_shares_of_a_term_sum_to_it_over_the_batches_of_a_step() -> None:
    weigher = Learned(lr=0.1)
    torch.nn.init.constant_(weigher.s, 1.5)
    shares = []
    for labels in ([1, 0, 0], [0], []):
        kept = samples(torch.zeros(len(labels), 2), labels)
        kept.step_total = lambda count: torch.tensor(4.0)
        weighed = weigher(kept, torch.zeros(len(labels)), torch.zeros(len(kept.positive)))
        shares.append(weighed.terms["s"].item())
    assert shares == pytest.approx([2.25, 0.75, 0])
    kept.step_total = lambda count: count  # a step without any sample
    assert weigher(kept, torch.zeros(0), torch.zeros(0)).terms["s"].item() == 0


def test_a_parameter_sits_in_one_optimizer() -> None:
    weigher = Learned(lr=0.1)
    model = quick(weigher={"rcnn": weigher})
    (own,) = methods_optimizers(model).values()
    main = parameters_for(model, [own])
    assert own.param_groups[0]["params"] == [weigher.s]
    in_optimizers = [id(parameter) for parameter in [*main, weigher.s]]
    assert sorted(in_optimizers) == sorted(id(parameter) for parameter in model.parameters())


def one_of_two(here: Any, store: Any, config: dict, choices: dict, folder: Path) -> None:
    from frcnn.training.run import run

    torch.set_num_threads(1)
    with small_network(), join_group(here, store, CPU) as group:
        run(config, choices, folder, group)


@pytest.mark.slow
def test_learned_weights_are_those_of_one_process(tmp_path: Path) -> None:
    options = ("weigher=learned", "sampler=ohem", "optimizer.lr=0.005", "trainer.epochs=1")
    saved = trained(tmp_path / "one", *options, "trainer.batch_size=4")
    config, choices = saved["config"], saved["choices"]
    config["trainer"]["batch_size"] = 2
    start(local_ranks(2), one_of_two, config, choices, tmp_path / "two")
    one, two = states(tmp_path / "one"), states(tmp_path / "two")
    assert one.keys() == two.keys() == {"rpn.weigher.s", "rcnn.weigher.s"}
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
