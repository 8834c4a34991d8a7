"""How the objects of a data set lie under a model's anchors, and pages about it."""
