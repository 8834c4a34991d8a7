"""A study as one self-contained HTML file."""

from collections.abc import Mapping

from experiments.html import figure
from experiments.report.sentences import sentences
from experiments.report.study import Study
from experiments.report.tables import tables
from frcnn.survey.html import document, listed, table

# Title and caption by the figure's name.
CAPTIONS = {
    "differences": (
        "Differences",
        "Mean difference to the baseline with its interval. Blue: better, red: worse, grey: no "
        "difference shown, hollow: one seed. An arrow points to a mean outside of the picture.",
    ),
    "curves": (
        "Learning curves",
        "AP by epoch: the mean of the seeds with a band of one standard deviation.",
    ),
    "precision": (
        "Precision and recall",
        "Precision at every recall, mean of classes and seeds: solid at IoU 0.5, dashed at 0.75.",
    ),
    "errors": (
        "Kinds of errors",
        "The AP50 that each kind of error costs: the mean of the seeds with one standard "
        "deviation, and a grey line at the baseline's.",
    ),
}


def page(study: Study, figures: Mapping[str, bytes]) -> str:
    """The whole page: sentences, problems, figures (PNG by name) and tables."""
    parts = listed("What can be said", sentences(study))
    parts += listed("What is wrong with the runs", study.problems, "problems")
    parts += [figure(*CAPTIONS[name], png) for name, png in figures.items()]
    parts += [table(one.title, one.columns, one.rows, one.notes) for one in tables(study)]
    return document("Comparison", parts)
