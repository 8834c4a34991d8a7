"""A study as one self-contained HTML file: the first screen answers, the rest opens on demand."""

from collections.abc import Mapping

from experiments.html import figure
from experiments.report import forest
from experiments.report.sentences import facts, headline, page_title, sentences
from experiments.report.study import Study
from experiments.report.tables import Table, tables
from frcnn.survey.html import code, document, folded, listed, table

# Title and caption by the figure's name.
CAPTIONS = {
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
        "deviation, and a grey line at the baseline's. Methods that did not learn are cut.",
    ),
}


def page(study: Study, figures: Mapping[str, bytes]) -> str:
    """The whole page: the answer, the forest plot, then everything else folded."""
    parts = [f'<p class="facts">{code(facts(study))}</p>']
    if study.compared:
        parts.append(f'<p class="headline">{code(headline(study))}</p>')
        parts.append(forest.html(forest.forest(study), study.baseline or ""))
    parts += listed("Conclusions", sentences(study)[1:] if study.compared else sentences(study))
    if study.problems:
        title = f"Problems with the runs ({len(study.problems)})"
        parts.append(folded(title, listed("", study.problems, "problems")[0]))
    shown = tables(study)
    cost = next(place for place, one in enumerate(shown) if one.title == "Cost")
    parts += [_table(one, one.title) for one in shown[:cost]]
    parts.append(folded(shown[cost].title, _table(shown[cost])))
    parts += [
        folded(title, figure("", caption, figures[name]))
        for name, (title, caption) in CAPTIONS.items()
        if name in figures
    ]
    parts += [folded(one.title, _table(one)) for one in shown[cost + 1 :]]
    return document(page_title(study), parts)


def _table(shown: Table, title: str = "") -> str:
    return table(title, shown.columns, shown.rows, shown.notes)
