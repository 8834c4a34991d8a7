"""The sections as W&B's objects: a saved workspace, and a report that says how to read it."""

import re
from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from experiments.dashboard.panels import AXES, METHOD, Section

MOST_RUNS = 100  # per chart; W&B's default of 10 is less than a sweep


def workspace(
    project: str, entity: str, group: str | None, sections: Sequence[Section]
) -> ws.Workspace:
    """The workspace to save: all sections over the runs of a sweep (None: of the project)."""
    columns = [f"config:{METHOD}.value", "config:seed.value", "summary:best/AP", "summary:last/AP"]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(group),
        sections=[
            ws.Section(name=section.title, panels=_panels(section), is_open=True)
            for section in sections
        ],
        settings=ws.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_of_sweep(group), groupby=[expr.Config(METHOD)], pinned_columns=columns
        ),
    )


def report(project: str, entity: str, group: str | None, sections: Sequence[Section]) -> wr.Report:
    """The same panels, each section with how to read it."""
    blocks: list[Any] = [wr.TableOfContents()]
    for section in sections:
        runs = wr.Runset(
            name=group or project, filters=_of_sweep(group), groupby=[f"config.{METHOD}"]
        )
        blocks += [
            wr.H2(section.title),
            wr.P(section.reading),
            wr.PanelGrid(runsets=[runs], panels=_panels(section)),
        ]
    return wr.Report(entity=entity, project=project, title=_title(group), blocks=blocks)


def _title(group: str | None) -> str:
    """At most 128 characters, W&B's limit, without symbols, which its library takes for emojis."""
    text = "Methods compared" if group is None else f"Methods compared in {group}"
    return re.sub(r"[^\w .-]", "-", text, flags=re.ASCII)[:128]


def _of_sweep(group: str | None) -> str:
    """A filter. The name is escaped: the library rewrites `=`, `<`, `>` in quoted text too."""
    if group is None:
        return ""
    text = "".join(f"\\U{ord(letter):08x}" for letter in group)
    return f"Metric('Group') == '{text}'"


def _panels(section: Section) -> list[Any]:
    by_method: dict[str, Any] = {
        "groupby": wr.Config(METHOD),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
        "max_runs_to_show": MOST_RUNS,
    }
    panels: list[Any] = [
        wr.BarPlot(title=name, metrics=[name], **by_method) for name in section.bars
    ]
    for name in section.curves:
        axis = AXES[name.partition("/")[0]]
        panels.append(wr.LinePlot(title=name, x=axis, y=[name], title_x=axis, **by_method))
    large = wr.Layout(w=24, h=12)  # as wide as a report
    if section.table:
        panels.append(wr.WeavePanelSummaryTable(table_name=section.table, layout=large))
    for name in section.pictures:
        panels.append(wr.MediaBrowser(title=name, media_keys=[name], layout=large))
    return panels
