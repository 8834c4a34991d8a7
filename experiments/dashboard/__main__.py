"""``python -m experiments.dashboard --project NAME [--entity NAME] [--group SWEEP] [--dry-run]``.

Saves a workspace and a report of the runs of a W&B project, or of the sweep of that name in it,
that show side by side what ``experiments.report`` compares by seed; each call makes new ones.
``--figures FOLDER`` first logs the folder's PNGs (``runs/sweep/report``) as images of a run of
their own. ``--dry-run`` prints both as JSON instead, and needs neither a key nor a network.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # W&B exports it nowhere

from experiments.dashboard.panels import METHOD, SECTIONS, figures

try:
    from experiments.dashboard.views import report, workspace
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[dashboard]'") from error


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dashboard", description=__doc__)
    parser.add_argument("--project", required=True, metavar="NAME")
    parser.add_argument("--entity", metavar="NAME", help="by default the one of the key")
    parser.add_argument("--group", metavar="SWEEP", help="the folder's name of a sweep")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="with PNGs")
    parser.add_argument("--dry-run", action="store_true", help="print, save nothing")
    options = parser.parse_args()
    files = _pngs(options.figures) if options.figures else []
    sections = [*SECTIONS, *([figures([_name(file) for file in files])] if files else [])]
    if options.dry_run:
        place = options.project, options.entity or "", options.group
        print(_spec(workspace=workspace(*place, sections), report=report(*place, sections)))
        return
    try:
        place = options.project, _entity(options.project, options.entity), options.group
        if files:
            with tempfile.TemporaryDirectory() as folder:
                log_figures(files, *place, folder)
        workspace(*place, sections).save()
        report(*place, sections).save()
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        raise SystemExit(f"W&B: {str(error).splitlines()[0]}") from error


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
    """Whose project it is.

    Raises:
        SystemExit: there is no API key.
        ValueError: there is no such project, which W&B would make of a misspelt name.
    """
    # Asking for a key at the terminal would stop a script.
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
