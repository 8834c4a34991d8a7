"""The page: sentences, the suggestion, figures, tables and pictures."""

from collections.abc import Sequence

from experiments.data.figures import of_anchors, of_objects
from experiments.html import figure
from experiments.style import png
from frcnn.data import DetectionDataset
from frcnn.data.objects import Objects
from frcnn.survey.html import document, listed, pictures, table
from frcnn.survey.pictures import WORST, WORST_NOTE, crowded, worst_covered
from frcnn.survey.settings import Setting
from frcnn.survey.tables import QUANTILES, by_size, classes, quantile_rows, sentences, suggestion

CROWDED = 6  # pictures


def page(
    title: str,
    data: DetectionDataset,
    objects: Objects,
    settings: Sequence[Setting],
    notes: Sequence[str],
) -> str:
    """The whole page.

    Args:
        settings: the model as configured, then with what is suggested.
        notes: sentences on what cannot be suggested.
    """
    now = settings[0]
    worst = worst_covered(data, objects, now.coverage, WORST)
    most = crowded(data, objects, CROWDED)
    parts = listed("What can be said", sentences(data, objects, now))
    if data.problems:
        parts += listed("What is wrong with the data", [data.problems.summary()], "problems")
    return document(
        title,
        [
            *parts,
            *suggestion(settings, notes),
            figure("Objects", OBJECTS, png(of_objects(data, objects, now))),
            table("Quantiles", ["", *QUANTILES], quantile_rows(data, objects, now)),
            classes(data, objects, now),
            figure("Best anchors", ANCHORS, png(of_anchors(objects, now))),
            by_size(now),
            pictures("The worst covered objects", WORST_NOTE, worst),
            pictures("The most crowded images", CROWDED_NOTE, most, side=500),
        ],
    )


OBJECTS = (
    "Objects of the training split; sizes are square roots of areas. An anchor's aspect ratio is "
    "drawn as width / height."
)
ANCHORS = (
    "The IoU of every object with its best anchor, after the model's resizing. Objects do not "
    "compete for anchors. By default anchors are positive from IoU 0.7 on at an RPN, from 0.5 on "
    "at RetinaNet's site; an object that has none gets its best anchor. Bars of fewer than 5 "
    "objects are left out."
)
CROWDED_NOTE = "A colour is a class. Ignored objects are neither counted nor drawn."
