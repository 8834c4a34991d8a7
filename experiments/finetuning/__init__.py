"""EfficientNet-Lite0 fine-tuned on four small sets, and its results scored by pycocotools."""
