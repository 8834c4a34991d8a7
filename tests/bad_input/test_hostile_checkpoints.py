"""Checkpoints of other hands: nothing in them is run, and what is wrong is one line.

The traps make a folder when they are sprung.
"""

import copy
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outcomes import refused
from tiny import NETWORKS, call, small_network, tiny

from frcnn import evaluate, predict, train
from frcnn.build import dataset, detector, fill_from_data
from frcnn.evaluation import load as trained
from frcnn.model.weights import file_weights
from frcnn.runfolder import checkpoint
from frcnn.training.resume import STATE, checkpoint_to_resume

Content = dict[str, Any]
# What a Faster R-CNN has, and what a RetinaNet has in its place.
IN_RETINANET = {
    "rpn": "dense", "rcnn": "dense", "box_score_thresh": "score_thresh",
    "roi_heads.box_predictor.cls_score.bias": "head.classification_head.cls_logits.bias",
    "rpn.head.cls_logits.bias": "head.regression_head.bbox_reg.bias",
    "rcnn.box_loss.density.shares": "dense.box_loss.density.shares",
}  # fmt: skip
RPN_BIAS = "rpn.head.cls_logits.bias"
BIAS = "roi_heads.box_predictor.cls_score.bias"


def key_in(node: dict[str, Any], key: str) -> str:
    """The key, by its name in this network."""
    name = IN_RETINANET.get(key, key)
    return name if name in node else key


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with small_network():
        yield


# The same cases once more: a long test.
LONG_RETINANET = pytest.param("retinanet_resnet18_fpn", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["fasterrcnn_resnet18_fpn", LONG_RETINANET])
def whole(request: pytest.FixtureRequest) -> Content:
    """What a run would save."""
    config, choices = tiny(f"model={request.param}", "box_loss=ghm_r")
    data = dataset(config["data"], "train")
    fill_from_data(config["loss"], data, config["model"]["sites"])
    torch.manual_seed(0)
    model = detector(config, data.num_classes)
    return {
        "version": checkpoint.VERSION, "model": model.state_dict(),
        "sites": model.sites.state_dict(), "own_optimizers": {},
        "config": config, "choices": choices, "class_names": data.class_names,
        "category_ids": data.category_ids, "step": 3, "optimizer": {}, "scaler": {},
        "window": [{"loss": 1.0}], "best": {"AP": 0.5, "step": 3}, "since_best": 0, "validated": 3,
        "seconds": 9.0, "tracker": {"bytes": 0, "rows": 0, "wandb_id": "0123abcd"},
    }  # fmt: skip


@pytest.fixture
def content(whole: Content) -> Content:
    return copy.deepcopy(whole)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "hostile.pt"


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "trap"
    assert not (tmp_path / "trap").exists()


def command(content: Content) -> list[str]:
    """The command line of such a run."""
    name = content["choices"]["model"].partition("_")[0]
    return [*NETWORKS[{"fasterrcnn": "faster_rcnn"}.get(name, name)], "box_loss=ghm_r"]


def load(file: Path, content: Any) -> trained.Trained:
    torch.save(content, file)
    return trained.load_trained(str(file), "cpu", "fp32")


def test_a_checkpoint_that_is_whole_is_taken(file: Path, content: Content) -> None:
    found = load(file, content)
    assert found.class_names == content["class_names"]
    state = found.detector.state_dict()
    assert all(torch.equal(state[key], value) for key, value in content["model"].items())


def mkdir(path: Path, **more: Any) -> dict[str, Any]:
    """A node that makes a folder when Hydra builds it."""
    return {"_target_": "os.mkdir", "path": str(path), **more}


def of_itself() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


def doubled(times: int) -> list[Any]:
    """2 ** times values in a pickle of some hundred bytes."""
    inside: list[Any] = [1]
    for _ in range(times):
        inside = [inside, inside]
    return inside


def created(path: Path) -> str:
    return f"${{oc.create:{{_target_:os.mkdir,path:'{path}'}}}}"


NOT_OURS, NOT_PLAIN, NO_KEY = (
    "not this project's code",
    "not a plain value",
    "which is not allowed",
)
# Each is put in the place of a value that the configuration of a loss has.
TRAPS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "node": (mkdir, NOT_OURS),
    "partial": (lambda path: mkdir(path, _partial_=True), NOT_OURS),
    "below-a-key": (lambda path: {"a": {"b": mkdir(path)}}, NOT_OURS),
    "in-a-list": (lambda path: [1, [mkdir(path)]], NOT_OURS),
    "in-a-tuple": (lambda path: (mkdir(path),), "holds a tuple"),
    "in-an-ordered-dict": (lambda path: OrderedDict(mkdir(path)), NOT_OURS),
    "args": (lambda path: {"_args_": [mkdir(path)]}, NO_KEY),
    "own-class-with-args": (
        lambda path: {"_target_": "frcnn.losses.SmoothL1", "_args_": [mkdir(path)]}, NO_KEY
    ),
    "not-recursive": (lambda path: {"_recursive_": False, "x": mkdir(path)}, NO_KEY),
    "convert": (lambda path: {"_convert_": "object", "x": mkdir(path)}, NO_KEY),
    "created": (created, NOT_PLAIN),
    "created-in-a-list": (lambda path: [created(path)], NOT_PLAIN),
    "decoded": (lambda path: "${oc.decode:'${oc.env:HOME}'}", NOT_PLAIN),
    "environment": (lambda path: "${oc.env:WANDB_API_KEY}", NOT_PLAIN),
    "hydra-s-resolver": (lambda path: "${hydra:runtime.cwd}", NOT_PLAIN),
    "relative": (lambda path: "${..rpn}", NOT_PLAIN),
    "interpolated-target": (lambda path: {"_target_": "${x}", "x": "os.mkdir"}, NOT_OURS),
    "imported-module": (lambda path: {"_target_": "frcnn.losses.torch.load"}, NOT_OURS),
    "dunder": (lambda path: {"_target_": "frcnn.losses.__loader__"}, NOT_OURS),
    "builtins": (lambda path: {"_target_": "builtins.exec", "x": "1"}, NOT_OURS),
    "no-optimizer": (lambda path: {"_target_": "torch.optim.lr_scheduler"}, NOT_OURS),
    "hydra-itself": (lambda path: {"_target_": "hydra.utils.call", "x": mkdir(path)}, NOT_OURS),
    "a-path": (lambda path: {"_target_": "frcnn/losses.SmoothL1"}, NOT_OURS),
    "list-as-target": (lambda path: {"_target_": ["os.mkdir"]}, NOT_OURS),
    "target-null": (lambda path: {"_target_": None, "path": str(path)}, NOT_OURS),
    "key-of-bytes": (lambda path: {b"_target_": "os.mkdir"}, NO_KEY),
    "key-a-number": (lambda path: {1: mkdir(path)}, NO_KEY),
    "bytes": (lambda path: b"os.mkdir", "holds a bytes"),
    "type": (lambda path: torch.float32, "holds a dtype"),
    "tensor": (lambda path: torch.ones(2), "holds a Tensor"),
    "of-itself": (lambda path: of_itself(), "more than 100000 values"),
    "a-billion-lists": (lambda path: doubled(30), "more than 100000 values"),
}  # fmt: skip


def part_of(node: dict[str, Any], site: str) -> dict[str, Any]:
    return node[key_in(node, site)]


PLACES: dict[str, Callable[[Content, Any], None]] = {
    "loss": lambda config, value: part_of(config["loss"], "rpn").update(per=value),
    "box-loss": lambda config, value: part_of(config["box_loss"], "rcnn").update(mu=value),
    "data": lambda config, value: config["data"].update(width=value),
    "model": lambda config, value: config["model"].update(rpn_sampler=value),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("make", "says"), TRAPS.values(), ids=TRAPS)
def test_no_value_of_a_configuration_is_run(
    file: Path, content: Content, trap: Path, make: Any, says: str, place: Any
) -> None:
    place(content["config"], make(trap))
    line = refused(load, file, content)
    assert line.startswith(f"{file}: ") and says in line


@pytest.mark.parametrize("part", ["loss", "box_loss", "data"])
def test_no_part_of_a_configuration_is_run(
    file: Path, content: Content, trap: Path, part: str
) -> None:
    content["config"][part] = mkdir(trap)
    assert NOT_OURS in refused(load, file, content)


@pytest.mark.parametrize(
    "name", ["node", "in-a-list", "in-a-tuple", "created", "in-an-ordered-dict"]
)
def test_the_traps_would_spring(
    file: Path, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without the check: so the tests above would fail if it let one through."""
    monkeypatch.setattr(trained, "refuse_untrusted", lambda *_: None)
    part_of(content["config"]["loss"], "rpn")["per"] = TRAPS[name][0](tmp_path / "sprung")
    refused(load, file, content)
    assert (tmp_path / "sprung").exists()


class Malicious:
    """Makes a folder when a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def torch_file(value: Any) -> Callable[[Path, Path], None]:
    return lambda file, trap: torch.save(value, file)


def pickled(protocol: int) -> Callable[[Path, Path], None]:
    def write(file: Path, trap: Path) -> None:
        file.write_bytes(pickle.dumps(Malicious(trap), protocol))

    return write


def zipped(file: Path, trap: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../trap/x", "x")
        archive.writestr("archive/data.pkl", pickle.dumps(Malicious(trap)))


def scripted(file: Path, trap: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(Malicious(trap)))
        archive.writestr("a/data.pkl", pickle.dumps(Malicious(trap)))
        archive.writestr("a/code/__torch__.py", "import os")
        archive.writestr("a/version", "3\n")


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(3))
    return out.getvalue()


UNREADABLE: dict[str, Callable[[Path, Path], None]] = {
    "empty": lambda file, trap: file.write_bytes(b""),
    "text": lambda file, trap: file.write_text("hello"),
    "zeros": lambda file, trap: file.write_bytes(b"\0" * 4096),
    "folder": lambda file, trap: file.mkdir(),
    "numpy": lambda file, trap: file.write_bytes(npz()),
    "pickle-0": pickled(0), "pickle-2": pickled(2), "pickle-5": pickled(5),
    "malicious": lambda file, trap: torch.save({"model": Malicious(trap)}, file),
    "malicious-legacy": lambda file, trap: torch.save(
        Malicious(trap), file, _use_new_zipfile_serialization=False
    ),
    "function": torch_file(os.system), "class": torch_file(Path("x")),
    "whole-module": torch_file(torch.nn.Linear(1, 1)),
    "zip": zipped, "script": scripted,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*TorchScript:UserWarning")
@pytest.mark.parametrize("write", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_with_more_than_tensors_in_it_is_not_read(
    file: Path, trap: Path, tmp_path: Path, write: Any
) -> None:
    write(file, trap)
    assert "not a readable checkpoint (" in refused(checkpoint.load, file)
    assert "not a readable weights file (" in refused(file_weights, file)
    assert os.listdir(tmp_path) == [file.name]


def changed(**values: Any) -> Callable[[Content], Any]:
    return lambda content: content | values


def without(key: str) -> Callable[[Content], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


def with_model(change: Callable[[dict[str, Any]], Any]) -> Callable[[Content], Any]:
    """The content with its state dict changed in place."""

    def make(content: Content) -> Content:
        change(content["model"])
        return content

    return make


def with_config(*path: str, value: Any) -> Callable[[Content], Any]:
    def make(content: Content) -> Content:
        node = content["config"]
        for key in path[:-1]:
            node = node[key_in(node, key)]
        node[key_in(node, path[-1])] = value
        return content

    return make


def with_shares(value: Any) -> Callable[[Content], Any]:
    """The content with another state of the box loss."""
    key = "rcnn.box_loss.density.shares"
    return lambda content: content | {"sites": {key_in(content["sites"], key): value}}


FOREIGN, UNFIT = "not a checkpoint of this project", "its content cannot be used"
CONTENT: dict[str, tuple[Callable[[Content], Any], str]] = {
    "null": (lambda content: None, FOREIGN),
    "list": (lambda content: [content], FOREIGN),
    "state-dict": (lambda content: content["model"], FOREIGN),
    **{f"no-{key}": (without(key), FOREIGN) for key in checkpoint.REQUIRED},
    **{
        f"{key}-of-wrong-type": (changed(**{key: torch.ones(2)}), f"{FOREIGN} ('{key}' is no ")
        for key in checkpoint.REQUIRED
    },
    "version": (changed(version=99), "checkpoint version 99, this code reads 1"),
    "no-weights": (changed(model={}), "its model is no state dict"),
    "nested-weights": (changed(model={"a": {"b": torch.ones(1)}}), "its model is no state dict"),
    "weights-by-number": (changed(model={1: torch.ones(1)}), "its model is no state dict"),
    "more-ids-than-names": (changed(category_ids=[1]), "are not one text per category id"),
    "names-of-numbers": (changed(class_names=[1, 2, 3]), "are not one text per category id"),
    "other-classes": (changed(class_names=["a"], category_ids=[1]), "names 1 classes, but its"),
    "no-classes": (changed(class_names=[], category_ids=[]), "names 0 classes, but its"),
    "weight-missing": (with_model(lambda model: model.pop(key_in(model, BIAS))), "does not fit"),
    "weight-more": (with_model(lambda model: model.update(x=torch.ones(1))), "does not fit"),
    "weight-shape": (
        with_model(lambda model: model.update({key_in(model, RPN_BIAS): torch.ones(9)})),
        "does not fit this model",
    ),
    "weight-huge-view": (
        with_model(lambda model: model.update(x=torch.ones(1).expand(2**40))), "does not fit"
    ),
    "weight-nan": (
        with_model(lambda model: model[key_in(model, BIAS)].fill_(torch.nan)), ".bias is not finite"
    ),
    "weight-infinite": (
        with_model(lambda model: model[key_in(model, BIAS)].fill_(torch.inf)), ".bias is not finite"
    ),
    "no-model-in-config": (with_config("model", value=None), UNFIT),
    "empty-config": (changed(config={}), UNFIT),
    "unknown-network": (with_config("model", "name", value="vgg"), "'vgg' is not one of"),
    "network-no-text": (with_config("model", "name", value=3), "expected a string, got 3"),
    "part-text": (with_config("model", "backbone", value="x"), "model.backbone: only with"),
    "size-text": (with_config("model", "min_size", value="small"), "model.min_size: expected an"),
    "size-huge": (with_config("model", "max_size", value=10**30), "model.max_size: 1"),
    "score-nan": (with_config("model", "box_score_thresh", value=float("nan")), "between 0 and 1"),
    "no-loss": (with_config("loss", value={}), "no part for the site"),
    "loss-text": (with_config("loss", "rpn", value="ce"), UNFIT),
    "loss-unknown-option": (with_config("loss", "rpn", "x", value=1), "got an unexpected"),
    "loss-is-data": (with_config("loss", "rpn", "_target_", value="frcnn.data.shapes"), ""),
    "loss-partial": (with_config("loss", "rpn", "_partial_", value=True), UNFIT),
    "states-unknown": (changed(sites={"x": {}}), UNFIT),
    "states-list": (changed(sites=[1]), UNFIT),
    "states-foreign": (changed(sites={"rcnn.box_loss.x": 1}), UNFIT),
    "states-text": (with_shares("x"), UNFIT),
    "states-shape": (with_shares(torch.ones(3)), UNFIT),
    "states-nan": (with_shares(torch.full((10,), torch.nan)), UNFIT),
}  # fmt: skip


@pytest.mark.parametrize(("make", "says"), CONTENT.values(), ids=CONTENT)
def test_content_that_cannot_be_used_is_one_line(
    file: Path, content: Content, make: Any, says: str
) -> None:
    line = refused(load, file, make(content))
    assert says in line, line


def shapes(**options: Any) -> dict[str, Any]:
    return {"_target_": "frcnn.data.shapes", "_partial_": True, **options}


DATA = {
    "root-a-number": {"_target_": "frcnn.data.voc", "_partial_": True, "root": 5},
    "no-root": {"_target_": "frcnn.data.voc", "_partial_": True},
    "unknown-option": {"_target_": "frcnn.data.shapes", "_partial_": True, "x": 1},
    "not-partial": {"_target_": "frcnn.data.shapes"},
    "a-loss": {"_target_": "frcnn.losses.SmoothL1", "_partial_": True},
    "no-target": {"root": "x"},
    "null": None,
    "a-trillion-images": shapes(val_images=10**12),
    "a-trillion-objects": shapes(num_objects=[0, 10**12]),
    "a-trillion-marks": shapes(clutter=10**12),
    "a-trillion-pixels": shapes(width=10**6, height=10**6),
}


@pytest.mark.parametrize("node", DATA.values(), ids=DATA)
def test_data_of_a_checkpoint_that_cannot_be_read_is_one_line(
    file: Path, content: Content, node: Any
) -> None:
    content["config"]["data"] = node
    found = load(file, content)
    refused(trained.checkpoint_data, found, str(file), "val")


def test_commands_say_it_in_one_line_and_write_nothing(
    file: Path, content: Content, trap: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(file.parent)
    part_of(content["config"]["loss"], "rpn")["per"] = (mkdir(trap),)
    torch.save(content, file)
    torch.save({"model": Malicious(trap)}, file.with_name("pickle.pt"))
    (file.parent / "a.png").touch()
    for name in (file.name, "pickle.pt"):
        for main, more in ((evaluate.main, ["workers=0"]), (predict.main, ["input=a.png"])):
            assert call(main, f"checkpoint={name}", *more) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"error: {name}: ") and error.count("\n") == 1
    assert sorted(os.listdir(file.parent)) == ["a.png", file.name, "pickle.pt"]


def with_state(key: str, **values: Any) -> Callable[[Content], Any]:
    return lambda content: content | {key: content[key] | values}


WEIGHTS_ONLY = "holds weights only"
RESUMED: dict[str, tuple[Callable[[Content], Any], str]] = {
    "other-parts": (
        with_config("loss", "rpn", value={"_target_": "os.mkdir", "path": doubled(64)}),
        ".path: [[[",
    ),
    "no-trainer": (with_config("trainer", value=None), UNFIT),
    "empty-config": (changed(config={}), UNFIT),
    **{f"no-{key}": (without(key), WEIGHTS_ONLY) for key in STATE},
    **{
        f"{key}-of-wrong-type": (changed(**{key: "x"}), f"{key!r} is no {kind.__name__}")
        for key, kind in STATE.items()
    },
    "step-negative": (changed(step=-1), "-1 stands where a count should"),
    "tracker-empty": (changed(tracker={}), UNFIT),
    "bytes-text": (with_state("tracker", bytes="x"), "'x' stands where a count should"),
    "bytes-negative": (with_state("tracker", bytes=-5), "-5 stands where a count should"),
    "rows-none": (with_state("tracker", rows=None), "None stands where a count should"),
    "wandb-id-a-path": (with_state("tracker", wandb_id="../../trap"), "where W&B's id should"),
    "wandb-id-a-number": (with_state("tracker", wandb_id=7), UNFIT),
    "best-empty": (changed(best={}), UNFIT),
    "best-text": (with_state("best", AP="x"), "are no numbers"),
    "window-of-texts": (changed(window=["x"]), UNFIT),
    "window-text": (changed(window=[{"loss": "x"}]), "are no numbers"),
}


def test_a_run_goes_on_from_one_that_is_whole(file: Path, content: Content) -> None:
    torch.save(content, file)
    config = content["config"] | {"resume": str(file)}
    found = checkpoint_to_resume(config, file.parent / "run", {})
    assert found is not None and found.saved["step"] == 3 and not found.own


@pytest.mark.parametrize(("make", "says"), RESUMED.values(), ids=RESUMED)
def test_a_run_does_not_go_on_from_it(file: Path, content: Content, make: Any, says: str) -> None:
    config = copy.deepcopy(content["config"]) | {"resume": str(file)}
    torch.save(make(content), file)
    line = refused(checkpoint_to_resume, config, file.parent / "run", {})
    assert line.startswith(f"{file}") and says in line, line


def test_a_run_s_own_checkpoint_without_a_configuration_is_passed_over(
    file: Path, content: Content, tmp_path: Path
) -> None:
    torch.save(content, file)
    own = tmp_path / "run/checkpoints/last.pt"
    own.parent.mkdir(parents=True)
    torch.save(content | {"config": {}}, own)
    config = content["config"] | {"resume": str(file)}
    found = checkpoint_to_resume(config, tmp_path / "run", {})
    assert found is not None and not found.own


@pytest.mark.parametrize("tracker", [None, {}, {"bytes": "x"}])
def test_a_run_s_own_checkpoint_of_other_hands_loses_no_records(
    content: Content, tmp_path: Path, tracker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "run/metrics.jsonl"
    own = tmp_path / "run/checkpoints/last.pt"
    own.parent.mkdir(parents=True)
    records.write_text('{"step": 1}\n')
    torch.save(content | {"tracker": tracker}, own)
    line = [*command(content), f"hydra.run.dir={tmp_path}/run"]
    assert call(train.main, *line) == 1
    error = [row for row in capsys.readouterr().err.splitlines() if "error: " in row]
    assert len(error) == 1 and str(own) in error[0]
    assert records.read_text() == '{"step": 1}\n'


def test_resume_runs_nothing_of_a_hostile_file(
    file: Path, content: Content, trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**content, "optimizer": Malicious(trap)}, tmp_path / "pickle.pt")
    torch.save({**content, "optimizer": {"state": mkdir(trap)}}, file)
    line = [*command(content), f"hydra.run.dir={tmp_path}/run"]
    for name, says in {"pickle.pt": "not a readable", file.name: "cannot be used"}.items():
        assert call(train.main, *line, f"resume={tmp_path / name}") == 1
        error = [row for row in capsys.readouterr().err.splitlines() if "error: " in row]
        assert len(error) == 1 and says in error[0]
    assert not (tmp_path / "run/checkpoints").exists()
