"""COCO metrics, inference, loading of trained detectors, drawing of boxes."""
