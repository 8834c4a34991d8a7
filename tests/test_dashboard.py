"""The dashboard shows what runs log, by the names that they log it by, and says what it lacks."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import SMALL, call, command_line, composed, records, small_network
from wandb_server import OWNER, wandb_server

from experiments.dashboard.logged import sites_and_terms
from experiments.dashboard.panels import AXES, METHOD, sections
from experiments.report.runs import FOLD, is_ignored, read
from experiments.report.study import study
from frcnn import train
from frcnn.tracking import tracker as tracking

SITES = ["rpn", "rcnn"]
TERMS = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"]
SECTIONS = sections(SITES, TERMS)
KEY = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = "it's a=b <\"\\x3d\"> and\nMetric('State')"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samplers, a seed each, with W&B offline."""
    folder = tmp_path_factory.mktemp("sweep")
    line = ["-m", *SMALL, "trainer.epochs=1", "data.train_images=4", "sampler=random,ohem"]
    line += ["seed=3", "wandb.mode=offline", f"wandb.dir={folder}", "wandb.tags=[mine]"]
    with small_network():
        assert call(train.main, *line, f"hydra.sweep.dir={folder}/compared") == 0
    return folder


@pytest.fixture(scope="module")
def logged(sweep: Path) -> list[list[dict[str, Any]]]:
    """What W&B holds of each run, in their order."""
    files = sorted(sweep.rglob("run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    return [records(file) for file in files]


def all_of(run: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in run if record["type"] == kind]


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The entry point, where the extra is installed, in a folder without runs."""
    pytest.importorskip("wandb_workspaces")
    monkeypatch.chdir(tmp_path)
    from experiments.dashboard import __main__

    return __main__


def test_a_run_logs_all_that_is_shown(logged: list[list[dict[str, Any]]]) -> None:
    for run in logged:
        rows = [row["item"] for row in all_of(run, "history")]
        for section in SECTIONS:
            for name in section.curves:
                axis = AXES[name.partition("/")[0]]
                # No object of so short a run has two positives at the head.
                absent = name == "sampling/rcnn/best_is_best"
                assert absent or any(name in row and axis in row for row in rows), name
            for name in section.pictures:
                assert any(f"{name}.filenames" in row for row in rows), name
            if section.table:
                assert any(row.get(f"{section.table}._type") == "table-file" for row in rows)
        # Names whose value is null, too: no object is large.
        summary = set().union(*(update.get("update", {}) for update in all_of(run, "summary")))
        assert not [name for section in SECTIONS for name in section.bars if name not in summary]
    assert {f"{kind}/*": axis for kind, axis in AXES.items()} == tracking.AXES


def test_the_runs_of_a_sweep_have_its_name_and_the_methods_of_the_report(
    sweep: Path, logged: list[list[dict[str, Any]]]
) -> None:
    started = [all_of(run, "run")[0] for run in logged]
    assert [run["run_group"] for run in started] == ["compared"] * 2
    assert [{"mine", "sampler/rpn=random"} < set(run["tags"]) for run in started] == [True] * 2
    random, ohem = (shlex.split(run["config"]["update"][METHOD]) for run in started)
    assert set(random) ^ set(ohem) == {"sampler=random", "sampler=ohem"}
    assert set(study(read(sweep / "compared")).methods) == {"sampler=random", "sampler=ohem"}
    assert not [text for text in random if text.startswith(("seed", "wandb", "hydra"))]


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        ([], "defaults"),
        (["seed=1", "run_name=a", "data.root=/else", "sweep=quick"], "defaults"),
        (["wandb.mode=online", "evaluation.backend=auto", "trainer.workers=0"], "defaults"),
        (["trainer.device=cuda:1", "trainer.eval_every=3", "trainer.num_pictures=0"], "defaults"),
        (["seed=1", "sampler=ohem", "loss=focal"], "loss=focal sampler=ohem"),
        (["++optimizer.lr=0.1", "data.split=a b"], "++optimizer.lr=0.1 'data.split=a b'"),
        (["trainer.epochs=24", "data=bccd"], "data=bccd trainer.epochs=24"),
        (["data.folds=5", "data.fold=3", "sampler=ohem"], "data.folds=5 sampler=ohem"),
    ],
)
def test_the_method_is_what_a_result_may_come_from(overrides: list[str], method: str) -> None:
    assert train.method(overrides) == method


def test_what_a_report_ignores_makes_no_other_method() -> None:
    config, _ = composed()
    keys = ["data.root", "data.folds", FOLD, "hydra.job.name", "sweep", "experiment"]
    keys += ["sampler/rcnn"]
    for group, node in config.items():
        keys += [f"{group}.{key}" for key in node] if isinstance(node, dict) else [group]
    assert {"seed", "trainer.clip_norm", "trainer.compile", "wandb.tags"} < set(keys)
    for key in keys:
        left_out = is_ignored(key) or key == FOLD
        assert (train.method([f"{key}=1"]) == "defaults") == left_out, key


def test_a_missing_extra_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['wandb_workspaces'] = None; "
         "import experiments.dashboard.__main__"],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "wandb_workspaces.reports is missing: pip install -e '.[dashboard]'\n"


def printed(dashboard: Any, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    with command_line("--project", "p", "--dry-run", *options):
        dashboard.main()
    return json.loads(capsys.readouterr().out)


def found(node: Any, key: str) -> Iterator[Any]:
    """All values of a key, at any depth."""
    if isinstance(node, dict):
        yield from [node[key]] if key in node else []
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from found(value, key)


def panels(view: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for some in found(view, "panels") for panel in some if isinstance(panel, dict)]


def test_both_views_show_every_metric_once_by_method(
    dashboard: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.Api", lambda: pytest.fail("asks a server"))
    spec = printed(dashboard, capsys)
    for view in (spec["workspace"], spec["report"]):
        shown = [(p["viewType"], p["config"]) for p in panels(view)]
        lines = [config for kind, config in shown if kind == "Run History Line Plot"]
        bars = [config for kind, config in shown if kind == "Bar Chart"]
        media = [config for kind, config in shown if kind == "Media Browser"]
        tables = [config for kind, config in shown if kind == "Weave"]
        assert [c["metrics"] for c in lines] == [[n] for s in SECTIONS for n in s.curves]
        assert [c["metrics"] for c in bars] == [[n] for s in SECTIONS for n in s.bars]
        assert [c["mediaKeys"] for c in media] == [[n] for s in SECTIONS for n in s.pictures]
        assert ["val/per_class" in found(table, "val") for table in tables] == [True]
        assert len(lines) + len(bars) + len(media) + len(tables) == len(shown)
        for config in lines + bars:
            assert (config["groupBy"], config["groupAgg"]) == (f"{METHOD}.value", "mean")
            assert (config["groupArea"], config["aggregate"]) == ("stddev", True)
        for config in lines:
            assert fnmatch(config["metrics"][0], "val/*") == (config["xAxis"] == "epoch")
        grouped = [[key["name"] for key in keys] for keys in found(view, "grouping")]
        assert grouped and all(names == [f"{METHOD}.value"] for names in grouped)


def test_the_report_has_a_heading_and_a_reading_for_each_grid(
    dashboard: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = printed(dashboard, capsys)["report"]["spec"]["blocks"]
    told = [(b["type"], "".join(found(b["children"], "text"))) for b in blocks]
    for section in SECTIONS:
        at = told.index(("heading", section.title))
        assert told[at + 1] == ("paragraph", section.reading)
        assert told[at + 2][0] == "panel-grid"


def test_the_sites_and_terms_of_the_runs_are_shown(
    dashboard: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = {
        "a": '{"step": 1, "train/loss": 1, "train/lr": 1, "train/classification": 1}\n',
        "sweep/b": '{"sampling/dense/hard_fraction": 1}\n{"train/loss_rcnn2_s": 1, "train/l',
    }
    for name, text in logged.items():
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(text)
    for options, terms in (
        ([], {"classification", "loss_rcnn2_s"}),
        (["--group", "sweep"], {"loss_rcnn2_s"}),
        (["--group", "else", "--runs", "runs/sweep"], {"loss_rcnn2_s"}),
    ):
        spec = printed(dashboard, capsys, *options)
        shown = {name for some in found(spec["workspace"], "metrics") for name in some or []}
        expected = {
            name for section in sections(["dense"], sorted(terms)) for name in section.curves
        }
        assert {name for name in shown if name.startswith(("sampling/", "train/"))} == {
            name for name in expected if name.startswith(("sampling/", "train/"))
        }


def test_without_run_folders_the_panels_are_those_of_a_faster_rcnn(
    dashboard: Any, capsys: pytest.CaptureFixture[str], sweep: Path
) -> None:
    sites, terms = sites_and_terms(sweep)
    assert sites == SITES == list(dashboard.SITES)
    assert sorted(terms) == sorted(TERMS) and list(dashboard.TERMS) == TERMS
    with command_line("--project", "p", "--dry-run", "--group", "none"):
        dashboard.main()
    assert capsys.readouterr().err.startswith("runs/none: no run there")


@pytest.mark.parametrize("group", ["compared", HOSTILE])
def test_only_the_runs_of_the_sweep_are_shown(
    dashboard: Any, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    spec = printed(dashboard, capsys, "--group", group)
    for view in (spec["workspace"], spec["report"]):
        for shown in found(view, "runSets"):
            (condition,) = shown[0]["filters"]["filters"]
            assert condition["key"] == {"section": "run", "name": "group"}
            assert (condition["op"], condition["value"]) == ("=", group)
    for shown in found(printed(dashboard, capsys), "runSets"):
        assert shown[0]["filters"]["filters"] == []


@pytest.fixture
def no_key(tmp_path: Path, fresh_wandb: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(dashboard: Any, *options: object) -> str:
    """What the command ends with."""
    with command_line("--project", "p", *map(str, options)), pytest.raises(SystemExit) as end:
        dashboard.main()
    assert isinstance(end.value.code, str) and "\n" not in end.value.code
    return end.value.code


def test_a_missing_key_is_one_line(dashboard: Any, no_key: Path) -> None:
    assert told(dashboard).startswith("W&B: no API key, get one with `wandb login`")


def test_a_folder_without_figures_is_one_line(dashboard: Any, tmp_path: Path) -> None:
    assert f"{tmp_path}: no PNG" in told(dashboard, "--figures", tmp_path, "--dry-run")


def figures(folder: Path) -> Path:
    folder.mkdir()
    for name, colour in (("curves", "red"), ("differences", "blue")):
        Image.new("RGB", (20, 10), colour).save(folder / f"{name}.png")
    return folder


def test_figures_are_images_of_a_run_beside_those_of_the_sweep(
    dashboard: Any, no_key: Path
) -> None:
    files = sorted(figures(no_key / "report").iterdir())
    dashboard.log_figures(files, "p", "owner", "compared", str(no_key), "offline")
    (path,) = no_key.rglob("run-*.wandb")
    run = records(path)
    (start,) = all_of(run, "run")
    assert (start["run_group"], start["job_type"]) == ("compared", "report")
    row = all_of(run, "history")[0]["item"]
    for file in files:
        copy = path.parent / "files" / row[f"figures/{file.stem}.path"]
        assert copy.read_bytes() == file.read_bytes()


# What the server has of a project, and says of a view that it saved.
PROJECT = {"id": "2", "internalId": "2", "name": "p", "entity": OWNER, "entityName": "owner",
           "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}  # fmt: skip
SAVED = {"id": "view", "name": "nw-abc-v", "displayName": "", "description": "", "spec": "{}",
         "project": {"id": "2", "name": "p", "entityName": "owner"}}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "project": PROJECT,
    "upsertView": {"inserted": True, "view": SAVED},
    "models": {"edges": [{"node": PROJECT}], "pageInfo": {"endCursor": None, "hasNextPage": False}},
}


def without_ids(node: Any) -> Any:
    """What is drawn at random at each call is left out."""
    if isinstance(node, dict):
        return {k: without_ids(v) for k, v in node.items() if k not in ("__id__", "id")}
    return [without_ids(value) for value in node] if isinstance(node, list) else node


def test_what_is_saved_is_what_was_printed(
    dashboard: Any,
    no_key: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--group", "compared", "--figures", str(figures(no_key / "report")))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    expected = printed(dashboard, capsys, *options)
    with wandb_server(ANSWERS) as (address, requests):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with command_line("--project", "p", *options):
            dashboard.main()
    queries = [json.loads(body) for path, _, body in requests if path == "/graphql"]
    saved = [query["variables"] for query in queries if "upsertView" in query["query"]]
    assert [(view["entityName"], view["projectName"], view["type"]) for view in saved] == [
        ("owner", "p", "project-view"),
        ("owner", "p", "runs"),
    ]
    for view, name in zip(saved, ("workspace", "report"), strict=True):
        assert without_ids(json.loads(view["spec"])) == without_ids(expected[name]["spec"])
    assert sorted(n for some in found(expected["report"], "mediaKeys") for n in some) == [
        "figures/curves",
        "figures/differences",
        "val/pictures",
    ]
    rows = b"".join(body for path, _, body in requests if path.endswith("file_stream"))
    assert b"figures/curves" in rows and b"figures/differences" in rows
    assert f"{address}/owner/p?nw=abc" in capsys.readouterr().err
    assert not [query for query in queries if "CreateProject" in query["query"]]


@pytest.mark.parametrize(
    ("project", "refused", "says"),
    [
        (None, {}, "W&B: Project p not found"),
        (PROJECT, {b"mutation UpsertView2": "permission denied"}, "permission denied"),
    ],
)
def test_what_the_server_refuses_is_one_line(
    dashboard: Any, no_key: Path, monkeypatch: pytest.MonkeyPatch,
    project: dict[str, Any] | None, refused: dict[bytes, str], says: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server(ANSWERS | {"project": project}, refused) as (address, requests):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        assert says in told(dashboard)
    assert not [body for _, _, body in requests if b"mutation" in body and b"View2" not in body]
