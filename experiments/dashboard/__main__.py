"""``python -m experiments.dashboard --project NAME [--entity NAME] [--group SWEEP] [--dry-run]``.

Saves a new workspace and a new report of the runs of a W&B project, or of one sweep in it. They
show side by side what ``experiments.report`` compares by seed. Their sites and loss terms are those
that the runs below ``--runs FOLDER`` logged, by default ``runs/SWEEP`` or ``runs``; without any run
there, those of a Faster R-CNN. ``--figures FOLDER`` first logs the folder's PNGs
(``runs/sweep/report``) as images of a run of their own. ``--dry-run`` prints both as JSON instead;
it needs no key and no network.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # W&B exports it nowhere

from experiments.dashboard.logged import sites_and_terms
from experiments.dashboard.panels import METHOD, Section, figures, sections

try:
    from experiments.dashboard.views import report, workspace
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[dashboard]'") from error

# Those of a Faster R-CNN, where no run folder is at hand.
SITES = ("rpn", "rcnn")
TERMS = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dashboard", description=__doc__)
    parser.add_argument("--project", required=True, metavar="NAME")
    parser.add_argument("--entity", metavar="NAME", help="by default the one of the key")
    parser.add_argument("--group", metavar="SWEEP", help="the folder's name of a sweep")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="with the runs' folders")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="with PNGs")
    parser.add_argument("--dry-run", action="store_true", help="print, save nothing")
    options = parser.parse_args()
    files = _pngs(options.figures) if options.figures else []
    shown = sections(*_logged(options.runs or Path("runs", options.group or "")))
    shown += [figures([_name(file) for file in files])] if files else []
    if options.dry_run:
        place = options.project, options.entity or "", options.group
        print(_spec(workspace=workspace(*place, shown), report=report(*place, shown)))
        return
    try:
        _save(options, files, shown)
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        raise SystemExit(f"W&B: {str(error).splitlines()[0]}") from error


def _logged(folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    """The sites and loss terms of the runs below a folder, or of a Faster R-CNN."""
    sites, terms = sites_and_terms(folder)
    if not terms:
        print(f"{folder}: no run there, so the panels are those of a Faster R-CNN", file=sys.stderr)
    return sites or SITES, terms or TERMS


def _save(options: argparse.Namespace, files: Sequence[Path], shown: Sequence[Section]) -> None:
    """Log the figures, then save workspace and report."""
    place = options.project, _entity(options.project, options.entity), options.group
    if files:
        with tempfile.TemporaryDirectory() as folder:
            log_figures(files, *place, folder)
    workspace(*place, shown).save()
    report(*place, shown).save()


def _spec(**views: Any) -> str:
    """What would be sent, as JSON."""
    models = {name: view._to_model() for name, view in views.items()}
    plain = {
        k: m.model_dump(mode="json", by_alias=True, exclude_none=True) for k, m in models.items()
    }
    return json.dumps(plain, indent=1)


def _pngs(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.png"))
    if not files:
        raise SystemExit(f"{folder}: no PNG, which experiments.report and experiments.figures make")
    return files


def _name(file: Path) -> str:
    return f"figures/{file.stem}"


def _entity(project: str, entity: str | None) -> str:
    """The owner of the project.

    Raises:
        SystemExit: there is no API key.
        ValueError: there is no such project. W&B would create one of a misspelt name.
    """
    # A prompt for the key would stop a script.
    if not wandb.login(prompt=False):
        raise SystemExit("W&B: no API key, get one with `wandb login`; --dry-run needs none")
    found = wandb.Api().project(project, entity)
    found.id  # noqa: B018
    return found.entity


def log_figures(
    files: Sequence[Path],
    project: str,
    entity: str,
    group: str | None,
    folder: str,
    mode: Literal["online", "offline"] = "online",
) -> None:
    """Log PNGs as images of a run of their own, beside the runs of the sweep.

    Args:
        folder: for W&B's files.
    """
    with wandb.init(
        mode=mode,
        project=project,
        entity=entity,
        group=group,
        job_type="report",
        name="figures",
        config={METHOD: "figures"},
        dir=folder,
        settings=wandb.Settings(silent=True),
    ) as run:
        run.log({_name(file): wandb.Image(str(file)) for file in files})


if __name__ == "__main__":
    main()
