"""Every option composes, is checked and can be built; what is wrong is said in one line."""

import copy
import json
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from annotated_types import Ge, Le
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from tiny import composed, options
from torchvision.models import detection, list_models

from frcnn.build import fill_from_data
from frcnn.config.checks import check_value, rule_of
from frcnn.config.compose import build, label, one_line
from frcnn.config.methods import BY_SITE, CONF, GROUPS, definition, read
from frcnn.config.schema import SCHEMAS
from frcnn.data import shapes
from frcnn.errors import ConfigError
from frcnn.losses.samples import Per
from frcnn.sites.kinds import KINDS

ROOT = Path(CONF).parent
SITES = ("rpn", "rcnn")
# Values that an option cannot know.
REQUIRED = {
    "voc": ["data.root=x"],
    "roboflow": ["data.root=x"],
    "yolo": ["data.root=x"],
}


PRESETS = [*GROUPS, "augmentation", "data", "model", "optimizer", "schedule"]
OWN_SITES = [f"{group}/{site}" for group in GROUPS for site in SITES]
OWN_DENSE = [f"{group}/dense" for group in GROUPS]


def rows(chosen: list[str]) -> list[list[str]]:
    """Overrides that together choose every option of these groups at least once."""
    columns = [[f"{group}={option}" for option in options(group)] for group in chosen]
    found = [[choice for choice in row if choice] for row in zip_longest(*columns)]
    return [
        row + [v for c in row for v in REQUIRED.get(c.removeprefix("data="), [])] for row in found
    ]


ROWS = [
    [choice for choice in row if choice != "loss/rpn=equalization"]
    for row in rows(PRESETS) + rows(OWN_SITES)
] + [[*row, "model=retinanet_resnet18_fpn"] for row in rows(OWN_DENSE)]


def test_options_are_found() -> None:
    folders = {file.parent.name for file in Path(CONF).glob("*/*.yaml")}
    assert folders - {"experiment", "sweep"} == set(PRESETS) - set(GROUPS)
    for what in ("method", "preset"):
        assert {folder.name for folder in Path(CONF, what).iterdir()} == set(GROUPS)
    assert sum(len(options(group)) for group in PRESETS + OWN_SITES) > 60


@pytest.mark.parametrize("overrides", ROWS, ids=lambda row: row[0])
def test_every_option_composes_and_builds(overrides: list[str]) -> None:
    config, choices = composed(*overrides)
    fill_from_data(config["loss"], shapes("train"), config["model"]["sites"])
    for override in overrides:
        group, _, option = override.partition("=")
        assert "." in group or choices[group] == option
    for site in config["model"]["sites"]:
        assert callable(build(config["assigner"][site]))
        assert callable(build(config["sampler"][site]))
        class_loss, box_loss = build(config["loss"][site]), build(config["box_loss"][site])
        assert callable(class_loss.scores) and callable(class_loss.normalizer)
        assert callable(box_loss) and callable(box_loss.normalizer)


@pytest.mark.parametrize("group", ["assigner", "sampler", "loss"])
def test_an_option_makes_what_its_file_is_called(group: str) -> None:
    for option in options(f"{group}/rcnn"):
        target = OmegaConf.load(f"{CONF}/method/{group}/{option}.yaml").get("_target_")
        if target:  # others say how they differ from one that has
            name = target.rpartition(".")[2].lower()
            assert option.replace("_", "").startswith(name) or name in option.replace("_", "")


def test_hydra_does_not_copy_all_options_at_each_look() -> None:
    options = ConfigStore.instance().repo
    assert copy.deepcopy(options) is options
    node = ConfigStore.instance().load("sampler/rcnn/ohem.yaml").node
    node.rank_by = "changed"  # the one that is loaded is a copy
    assert ConfigStore.instance().load("sampler/rcnn/ohem.yaml").node.rank_by == "loss"


def test_a_definition_names_its_site_in_whole_words(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("_target_: MYSITE.x\nbudget: ${site.SITE.budget}\nlow: ${assigner.SITE.low}\n")
    node = definition(read(file), "rcnn2", "rcnn")
    assert node["_target_"] == "MYSITE.x"
    assert (node["budget"], node["low"]) == ("${site.rcnn2.budget}", "${assigner.rcnn2.low}")


def test_sites_of_a_preset_can_be_set_before_and_after_it() -> None:
    for line in (["sampler/rpn=ohem", "sampler=all"], ["sampler=all", "sampler/rpn=ohem"]):
        config, choices = composed(*line)
        assert config["sampler"]["rpn"]["_target_"] == "samplers.OHEM"
        assert config["sampler"]["rcnn"]["_target_"] == "samplers.All"
        assert choices["sampler"] == "all" and choices["sampler/rpn"] == "ohem"


@pytest.mark.parametrize("name", ["check_data", "data_page"])
@pytest.mark.parametrize("model", options("model"))
def test_a_command_that_looks_at_data_takes_every_network(name: str, model: str) -> None:
    config, _ = composed(f"model={model}", name=name)
    assert config["model"]["name"] in model


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name != "train"])
def test_a_command_file_has_every_value_that_its_schema_knows(name: str) -> None:
    """A value that is missing in conf/NAME.yaml could not be set without a plus."""
    there = {key for key in OmegaConf.load(Path(CONF) / f"{name}.yaml") if isinstance(key, str)}
    assert there - {"defaults", "hydra", "data", "model"} == set(SCHEMAS[name].__annotations__)


def test_bins_end_where_background_ends_whatever_the_assigner() -> None:
    """dynamic_iou begins at 0.5 and moves; its least threshold is no end of background."""
    for assigner, end in (("max_iou", 0.5), ("dynamic_iou", 0.5)):
        config, _ = composed(f"assigner/rcnn={assigner}", "sampler=libra")
        assert config["sampler"]["rcnn"]["negative_iou"] == end


def assert_goes_with(experiment: str, sampler: str) -> None:
    config, choices = composed(f"experiment={experiment}", f"sampler={sampler}")
    assert choices["experiment"] == experiment and choices["sampler"] == sampler
    site = list(config["model"]["sites"])[-1]
    node, budget = config["sampler"][site], config["site"][site]["budget"]
    assert node.get("batch_size_per_image") in (None, budget)


# Those of a folder set values of their own sampler.
EXPERIMENTS = [experiment for experiment in options("experiment") if "/" not in experiment]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_goes_with_every_sampler(experiment: str) -> None:
    for sampler in options("sampler"):
        assert_goes_with(experiment, sampler)


ABLATED = [e for e in options("experiment") if e.startswith("retinanet/")]


@pytest.mark.parametrize(
    "experiment",
    [*EXPERIMENTS, *(pytest.param(e, marks=pytest.mark.slow) for e in ABLATED)],
)
def test_an_experiment_opens_with_its_command(experiment: str) -> None:
    text = (Path(CONF) / f"experiment/{experiment}.yaml").read_text()
    command = re.match(r"# @package _global_\n# python -m frcnn\.train (.+?)(   .*)?\n", text)
    assert command, text
    overrides = command[1].split()
    assert f"experiment={experiment}" in overrides
    config, _ = composed(*overrides)
    assert config["model"]["weights"] != "auto"  # no result depends on what can be downloaded
    if "arXiv" in text:  # a paper's, of sixteen images a step
        assert "Unchecked: never run" in text
        assert config["trainer"]["batch_size"] * config["trainer"]["accumulate"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("model", options("model"))
def test_auto_is_the_default_of_the_networks_with_coco_weights(model: str) -> None:
    # A cascade takes the weights of the Faster R-CNN below it.
    there = model.replace("cascade_rcnn", "fasterrcnn") in list_models(detection)
    assert composed(f"model={model}")[0]["model"]["weights"] == ("auto" if there else None)


@pytest.mark.parametrize("sweep", options("sweep"))
def test_every_sweep_composes(sweep: str) -> None:
    if "/hydra/sweeper: optuna" in (Path(CONF) / f"sweep/{sweep}.yaml").read_text():
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="extra optuna")
    _, choices = composed(f"sweep={sweep}")
    assert choices["sweep"] == sweep


def values_of(sweep: str) -> list[list[str]]:
    """Overrides that together have every value of a sweep at least once."""
    params = OmegaConf.load(f"{CONF}/sweep/{sweep}.yaml").hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params.items()])
    columns = [[f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()] for o in parsed]
    return [[f"sweep={sweep}", *filter(None, row)] for row in zip_longest(*columns)]


ABLATIONS = [sweep for sweep in options("sweep") if sweep.startswith("retinanet")]


@pytest.mark.slow
def test_what_is_usual_at_a_kind_of_site_is_the_same_in_code_and_in_files() -> None:
    read = OmegaConf.load(Path(CONF, "kinds.yaml"))
    assigner = OmegaConf.load(Path(CONF, "method/assigner/max_iou.yaml"))
    assert set(read) == set(KINDS)
    for name, kind in KINDS.items():
        of_file = {**assigner, **assigner.kinds.get(name, {})}
        assert (read[name].budget, read[name].positive_fraction) == (
            kind.budget,
            kind.positive_fraction,
        )
        found = tuple(of_file[key] for key in ("high", "low", "keep_best"))
        assert found == (kind.high, kind.low, kind.keep_best)


@pytest.mark.parametrize("line", [row for s in ABLATIONS for row in values_of(s)], ids="_".join)
def test_every_value_of_a_sweep_of_retinanet_is_one(line: list[str]) -> None:
    config, _ = composed(*line)
    assert list(config["sampler"]) == ["dense"]
    last = line[-1].partition("=")
    if last[0] == "loss.dense":  # Table 1b: less is left to alpha as gamma rises
        node = config["loss"]["dense"]
        best = 0.75 if node["gamma"] < 0.5 else 0.5 if node["gamma"] < 1 else 0.25
        assert node["alpha"] == best


@pytest.mark.parametrize("group", ["loss", "box_loss"])
def test_focal_and_box_terms_are_not_divided_by_all_anchors(group: str) -> None:
    """At a dense site; the sampler there is ``all``, and torchvision divides by positives."""
    for option in options(group):
        if group == "box_loss" or option in ("focal_sigmoid", "focal_star"):
            config, _ = composed("model=retinanet_resnet18_fpn", f"{group}={option}")
            assert config[group]["dense"]["per"] in ("image", "positive", "class_term"), option


@pytest.mark.parametrize("option", options("optimizer"))
def test_optimizer_moves_a_weight_down_its_gradient(option: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = build(composed(f"optimizer={option}")[0]["optimizer"])([weight])
    weight.square().sum().backward()
    optimizer.step()
    assert weight.item() < 2


@pytest.mark.parametrize("option", options("schedule"))
def test_schedule_warms_up_and_falls(option: str) -> None:
    schedule = build(composed(f"schedule={option}")[0]["schedule"])
    assert schedule(0, 1000) < 0.01 < schedule(999, 1000) + 0.01
    assert schedule(100, 1000) > 0.9 > schedule(999, 1000)


@pytest.mark.parametrize("option", options("augmentation"))
def test_augmentation_keeps_what_a_target_has(option: str) -> None:
    transform = build(composed(f"augmentation={option}")[0]["augmentation"])
    target = {
        "boxes": torch.tensor([[2.0, 3.0, 20.0, 30.0]]),
        "labels": torch.tensor([1]),
        "ignore": torch.zeros(0, 4),
        "image_id": 0,
        "seed": 1,
    }
    assert (transform is None) == (option == "none")
    if transform is not None:
        image, after = transform(torch.zeros(3, 48, 64, dtype=torch.uint8), dict(target))
        assert image.dtype == torch.uint8 and after.keys() == target.keys()


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("trainer.epochs", ["1", "12"], ["0", "1.5", "true", "'3'", "null", "[1]"]),
        ("trainer.max_steps", ["null", "1"], ["0"]),
        ("trainer.clip_norm", ["10", "0.1", "null"], ["0", "-1", "x"]),
        ("trainer.precision", ["auto", "bf16"], ["half", "16", "null"]),
        ("optimizer.lr", ["0.02", "1"], ["x", "nan", "[1]"]),
        ("sampler.rcnn.positive_fraction", ["0", "0.25", "1"], ["a", "null", "[0]"]),
        ("sampler.rpn.batch_size_per_image", ["1"], ["2.5", "null"]),
        ("site.rcnn.positive_fraction", ["0", "1"], ["-0.1", "1.1", "null"]),
        ("model.box_nms_thresh", ["0", "0.5", "1"], ["-0.1", "1.1"]),
        ("loss.rcnn.per", ["sample", "positive", "100", "0.5"], ["mean", "null"]),
        ("model.min_size", ["800", "[480,800]"], ["[]", "0", "'800'", "[480,a]"]),
        ("data.min_size", ["96"], ["9.5"]),
        ("data.num_objects", ["[1,6]"], ["3", "[1,2,3]", "[1.5,2]"]),
        ("model.anchor_sizes", ["null", "[8,16,32,64,128]"], ["32", "[]", "[0]"]),
        ("wandb.tags", ["[]", "[a]"], ["a", "[1]", "null"]),
    ],
)
def test_values_suit_the_annotation_of_what_takes_them(
    key: str, good: list[str], bad: list[str]
) -> None:
    for value in good:
        composed(f"{key}={value}")
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^{key}: expected "):
            composed(f"{key}={value}")


# Three of them take numbers from the data, which has not been read yet.
LOSSES = ("cross_entropy", "focal", "equalization", "ghm_c")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["sampler.rcnn.positive_fraction=3"], "sampler.rcnn.positive_fraction must be"),
        (["sampler.rpn.batch_size_per_image=0"], "sampler.rpn.batch_size_per_image must be"),
        *[(["loss.rcnn.per=0", f"loss={loss}"], "loss.rcnn.per must be") for loss in LOSSES],
        (["assigner.rpn.low=0.8"], r"assigner.rpn.low must be in \[0, high=0.7\], got 0.8"),
        (["box_loss=carl", "box_loss.rcnn.bias=2"], "box_loss.rcnn.bias must be"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
    ],
)
def test_what_a_constructor_refuses_is_said_with_the_full_key(line: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{says}"):
        composed(*line)


def test_a_value_without_an_annotation_is_like_its_default() -> None:
    for value, default in [(2, 1), ("b", "a"), ("path", "???"), (1, None)]:
        check_value("new", value, Any, default)
    for value, default in [("b", 1), (1.5, 1), (True, 1), (1, True), (1, "a"), (None, "a")]:
        with pytest.raises(ConfigError, match="^new: expected"):
            check_value("new", value, Any, default)


def test_a_rule_says_what_it_allows() -> None:
    assert str(rule_of(Annotated[float, Ge(0), Le(1)] | None)) == "a number between 0 and 1 or null"
    assert (
        str(rule_of(Per))
        == "one of sample, positive, coordinate, guided, image, class_term or a number"
    )
    assert str(rule_of(tuple[int, int])) == "a list of 2 values, each an integer"
    assert rule_of(Any) is None


def test_a_site_that_the_network_lacks_leaves_configuration_and_choices() -> None:
    config, choices = composed("sampler=ohem")
    for group in BY_SITE:
        assert set(config[group]) == {"rpn", "rcnn"}
    assert not any("dense" in key for key in choices)


def test_what_a_constructor_refuses_names_its_class() -> None:
    node = {"_target_": "samplers.Random", "batch_size_per_image": 0, "positive_fraction": 0.5}
    with pytest.raises(ConfigError, match=r"^samplers.Random: .*batch_size_per_image"):
        build(node)
    with pytest.raises(ConfigError, match=r"^sampler.rpn.batch_size_per_image must be"):
        build(node, "sampler.rpn")


def test_an_error_of_several_lines_becomes_one() -> None:
    assert one_line("train", ValueError("a\n  b\n\tc")) == "a b c"


def test_a_job_s_folder_says_what_was_chosen_and_fits_a_file_system() -> None:
    text = "data.num_objects=[1,2],sampler/rcnn=ohem,seed=1,trainer.epochs=3"
    assert label(text) == "sampler-rcnn-ohem_seed-1_data.num_objects-1-2-_trainer.epochs-3"
    assert label("seed=0") == "seed-0" and label("") == "defaults"
    long = [label(f"{text * 9},{key}=0") for key in "ab"]
    assert [len(name) for name in long] == [120, 120] and long[0] != long[1]


RETINANET = "model=retinanet_resnet18_fpn"
# Command line -> what its one line must say.
BAD = [
    (["trainer.epohcs=3"], ["trainer.epohcs", "did you mean trainer.epochs?"]),
    (["+trainer.epohcs=3"], ["trainer.epohcs", "did you mean trainer.epochs?"]),
    (["+sampler.rcnn.foo=1"], ["sampler.rcnn.foo", "batch_size_per_image, positive_fraction"]),
    (["sampler=ohem", "sampler.rcnn.rank=a"], ["sampler.rcnn.rank", "did you mean", "rank_by"]),
    (["trainer.epochs=abc"], ["trainer.epochs", "an integer of at least 1", "'abc'"]),
    (["trainer.epochs=null"], ["trainer.epochs", "an integer", "None"]),
    (["trainer.epochs=[1,2]"], ["trainer.epochs", "an integer", "[1, 2]"]),
    (["~trainer.epochs"], ["trainer.epochs is missing"]),
    (["trainer=5"], ["trainer", "5"]),
    (["site=5"], ["site", "is not a container"]),
    (["model.rpn_bg_iou_thresh=0.8"], ["model.rpn_bg_iou_thresh is now assigner.rpn.low"]),
    (["budget.rcnn=64"], ["budget.rcnn is now site.rcnn.budget"]),
    (["loss_weight.box_reg=2"], ["loss_weight.box_reg is now loss_weight.rcnn.box"]),
    (["sampler/rcnn=typo"], ["sampler/rcnn/typo", "Available options in 'sampler/rcnn'"]),
    (["sampler/dense=ohem"], ["sampler/dense=ohem", "has the sites rpn, rcnn"]),
    (["site.dense.budget=7"], ["site.dense.budget=7", "has the sites rpn, rcnn"]),
    ([RETINANET, "sampler/rpn=ohem"], ["sampler/rpn=ohem", "has the sites dense"]),
    ([RETINANET, "site.rcnn.budget=7"], ["site.rcnn.budget=7", "has the sites dense"]),
    ([RETINANET, "model.rpn_nms_thresh=.5"], ["model.rpn_nms_thresh", "model.nms_thresh?"]),
    (["experiment=typo"], ["experiment/typo", "Available options", "quick"]),
    (["experiment=null"], ["must be a string or a list"]),
    (["data=voc"], ["data.root is required", "data.root=VALUE"]),
    (["wandb.mode=off"], ["wandb.mode", "offline, online, disabled", "'off'"]),
    (["experiment=mine"], ["trainer.epohcs", "did you mean trainer.epochs?"]),
    (["experiment=mine", "trainer.paitence=2"], ["trainer.paitence", "trainer.patience"]),
    (["-m", "sampler=random,ohem", "trainer.epohcs=1"], ["trainer.epohcs", "trainer.epochs"]),
]
SCRIPT = """
import contextlib, io, json, sys
sys.path.insert(0, "tests")
from compose_once import compose_once
from frcnn import train
train.train = lambda *_: None  # what is let through shall not train for minutes
results = []
once = compose_once()
once.__enter__()
for line in json.loads(sys.argv[1]):
    sys.argv = ["frcnn.train", *line]
    error, code = io.StringIO(), 0
    with contextlib.redirect_stderr(error):
        try:
            train.main()
        except SystemExit as stop:
            code = stop.code
    results.append([code, error.getvalue()])
print(json.dumps([results, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process, in which torch was never asked for, says to all of these."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "experiment").mkdir()
    (folder / "experiment/mine.yaml").write_text("# @package _global_\ntrainer: {epohcs: 3}\n")
    folders = [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
    own = [f"hydra.searchpath=[file://{folder}]"]
    lines = [line + folders + own * ("experiment=mine" in line) for line, _ in BAD]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    results, torch_loaded = json.loads(done.stdout.splitlines()[-1])
    return {
        "torch": torch_loaded,
        **{str(line): r for (line, _), r in zip(BAD, results, strict=True)},
    }


def test_bad_command_lines_are_found_before_torch_is_loaded(answers: dict[str, Any]) -> None:
    assert answers["torch"] is False


@pytest.mark.parametrize(("line", "says"), BAD, ids=lambda v: " ".join(v))
def test_bad_command_line_ends_in_one_line_and_code_2(
    answers: dict[str, Any], line: list[str], says: list[str]
) -> None:
    code, error = answers[str(line)]
    assert code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(part in error for part in says), error
