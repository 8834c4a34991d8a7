"""COCO metrics, inference, trained detectors, drawings."""
