"""What a configuration value may be, by its key; checked before torch is loaded."""

from dataclasses import dataclass
from typing import Any

from frcnn.errors import ConfigError

ANY, SOME, TWO = range(1000), range(1, 1000), range(2, 3)
# Of any number: what comes near the end of 64 bits overflows somewhere in a step.
LARGEST = 2**53


@dataclass(frozen=True)
class Rule:
    """Type and range of a value, or of each element of a list of one of the lengths ``lists``.

    A text must be one of the ``options`` where there are some; ``null`` is allowed where
    ``optional``, a value that is no list where ``single``.
    """

    kind: type
    low: float | None = None
    high: float | None = None
    above: float | None = None
    options: tuple[str, ...] = ()
    optional: bool = False
    lists: range = range(0)
    single: bool = True

    def __str__(self) -> str:
        one = self._one()
        if not self.single:
            one = f"a list of {'two, each' if self.lists == TWO else 'values, each'} {one}"
        elif self.lists:
            one += " or a list of them"
        return one + (" or null" if self.optional else "")

    def _one(self) -> str:
        words = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
        kinds = list(self.options) if self.kind is str else [*self.options, words[self.kind]]
        text = f"one of {', '.join(kinds)}" if self.options else words[self.kind]
        if self.low is not None and self.high is not None:
            text += f" between {self.low:g} and {self.high:g}"
        elif self.low is not None:
            text += f" of at least {self.low:g}"
        elif self.above is not None:
            text += f" above {self.above:g}"
        return text

    def allows(self, value: Any) -> bool:
        """Whether the value is of this type and range."""
        if value is None:
            return self.optional
        if isinstance(value, list):
            return len(value) in self.lists and all(self._allows_one(v) for v in value)
        return self.single and self._allows_one(value)

    def _allows_one(self, value: Any) -> bool:
        if self.options and isinstance(value, str):
            return value in self.options
        if isinstance(value, bool) != (self.kind is bool):
            return False
        if not isinstance(value, (int, float) if self.kind is float else self.kind):
            return False
        return not (
            (self.low is not None and not value >= self.low)
            or (self.high is not None and not value <= self.high)
            or (self.above is not None and not value > self.above)
        )


COUNT, POSITIVE, SHARE = Rule(int, low=0), Rule(int, low=1), Rule(float, low=0, high=1)
SIZE = Rule(float, above=0)
PER = Rule(float, above=0, options=("sample", "positive", "coordinate", "guided"))

# By the whole key, or by its last part wherever it stands.
RULES = {
    "seed": COUNT,
    "epochs": POSITIVE,
    "max_steps": Rule(int, low=1, optional=True),
    "devices": POSITIVE,
    "batch_size": POSITIVE,
    "accumulate": POSITIVE,
    "precision": Rule(str, options=("auto", "fp32", "bf16", "fp16")),
    "clip_norm": Rule(float, above=0, optional=True),
    "workers": COUNT,
    "eval_every": POSITIVE,
    "patience": Rule(int, low=1, optional=True),
    "log_every": POSITIVE,
    "checkpoint_minutes": Rule(float, low=0),
    "sampling_every": POSITIVE,
    "num_pictures": COUNT,
    "backend": Rule(str, options=("auto", "pycocotools", "faster_coco_eval")),
    "wandb.mode": Rule(str, options=("offline", "online", "disabled")),
    "wandb.entity": Rule(str, optional=True),
    "wandb.group": Rule(str, optional=True),
    "wandb.name": Rule(str, optional=True),
    "wandb.method": Rule(str, optional=True),
    "tags": Rule(str, lists=ANY, single=False),
    "split": Rule(str, options=("train", "val")),
    "output": Rule(str, optional=True),
    "min_score": SHARE,
    "lr": SIZE,
    "momentum": Rule(float, low=0, high=1),
    "weight_decay": Rule(float, low=0),
    "warmup_steps": COUNT,
    "warmup_factor": SHARE,
    "final_factor": SHARE,
    "gamma": Rule(float, low=0),
    "milestones": Rule(float, low=0, high=1, lists=ANY, single=False),
    "betas": Rule(float, low=0, high=1, lists=TWO, single=False),
    "budget.rpn": POSITIVE,
    "budget.rcnn": POSITIVE,
    "batch_size_per_image": POSITIVE,
    "positive_fraction": SHARE,
    "nms_iou": Rule(float, above=0, high=1, optional=True),
    "beta": SIZE,
    "ratio": Rule(float, low=0),
    "min_negatives": COUNT,
    "num_bins": POSITIVE,
    "edges": Rule(str, options=("negative_range", "max_overlap")),
    "negative_iou": SHARE,
    "floor": Rule(float, low=0, high=1, optional=True),
    "floor_fraction": SHARE,
    "gamma_p": Rule(float, low=0),
    "gamma_n": Rule(float, low=0),
    "beta_p": SHARE,
    "beta_n": SHARE,
    "rank_scale": Rule(str, options=("n_max", "n_j")),
    "score_threshold": SHARE,
    "cluster_iou": Rule(float, above=0, high=1),
    "rank_by": Rule(str, options=("loss", "class_loss")),
    "per": PER,
    "guided_scale": SIZE,
    "prior": Rule(float, low=0, high=1, optional=True),
    "class_weights": Rule(
        float, low=0, options=("batch", "data", "effective"), lists=SOME, optional=True
    ),
    "class_counts": Rule(int, low=0, options=("data",), lists=SOME, optional=True),
    "class_frequencies": Rule(float, low=0, high=1, options=("data",), lists=SOME),
    "effective_beta": SHARE,
    "alpha": Rule(float, low=0, optional=True),
    "loss.rpn.beta": Rule(float),
    "loss.rcnn.beta": Rule(float),
    "rare_below": SHARE,
    "mu": SIZE,
    "weight": SIZE,
    "loss_weight.classifier": Rule(float, low=0),
    "loss_weight.box_reg": Rule(float, low=0),
    "loss_weight.objectness": Rule(float, low=0),
    "loss_weight.rpn_box_reg": Rule(float, low=0),
    "k": Rule(float, low=0),
    "bias": SHARE,
    "model.weights": Rule(str, optional=True),
    "model.weights_backbone": Rule(str, optional=True),
    "trainable_backbone_layers": Rule(int, low=0, high=6, optional=True),
    "freeze_batch_norm": Rule(bool, optional=True),
    "fpn_channels": POSITIVE,
    "representation_size": POSITIVE,
    "backbone_width": Rule(float, above=0),
    "min_size": Rule(int, low=1, lists=SOME),
    "max_size": POSITIVE,
    "anchor_sizes": Rule(float, above=0, lists=SOME, single=False, optional=True),
    "roi_align": Rule(str, options=("fast", "torchvision")),
    "ignore_ioa": SHARE,
    "rpn_fg_iou_thresh": SHARE,
    "rpn_bg_iou_thresh": SHARE,
    "box_fg_iou_thresh": SHARE,
    "box_bg_iou_thresh": SHARE,
    "rpn_nms_thresh": SHARE,
    "box_nms_thresh": SHARE,
    "rpn_score_thresh": SHARE,
    "box_score_thresh": SHARE,
    "rpn_pre_nms_top_n_train": POSITIVE,
    "rpn_pre_nms_top_n_test": POSITIVE,
    "rpn_post_nms_top_n_train": POSITIVE,
    "rpn_post_nms_top_n_test": POSITIVE,
    "box_detections_per_img": POSITIVE,
    # Of shapes, which are drawn in memory: a checkpoint's data node may ask for any number.
    "width": Rule(int, low=1, high=4096),
    "height": Rule(int, low=1, high=4096),
    "imbalance": Rule(float, low=1),
    "clutter": Rule(int, low=0, high=1000),
    "num_objects": Rule(int, low=0, high=1000, lists=TWO, single=False),
    "object_size": Rule(int, low=1, lists=TWO, single=False),
    "clutter_size": Rule(int, low=1, lists=TWO, single=False, optional=True),
    "class_probabilities": Rule(float, low=0, lists=SOME, single=False, optional=True),
    "classes": Rule(str, lists=SOME, single=False, optional=True),
}


def check_value(path: str, value: Any, default: Any) -> None:
    """Raise ConfigError unless the value suits the key's rule, or else its default's type."""
    rule = RULES.get(path) or RULES.get(path.rpartition(".")[2]) or _like(default)
    if value is None and default is None:
        return
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and abs(number) > LARGEST:
            raise ConfigError(f"{path}: {number} is too large for any option")
    if rule is not None and not rule.allows(value):
        raise ConfigError(f"{path}: expected {rule}, got {value!r}")


def check_order(model: dict[str, Any]) -> None:
    """Raise ConfigError unless background ends below where objects begin, at both sites."""
    for site in ("rpn", "box"):
        low, high = f"{site}_bg_iou_thresh", f"{site}_fg_iou_thresh"
        if model[low] > model[high]:
            raise ConfigError(
                f"model.{low}: expected at most model.{high}={model[high]}, got {model[low]}"
            )


def _like(default: Any) -> Rule | None:
    """The rule that a default value implies; none for null, lists and interpolations.

    A required value (``???``) without a rule of its own is a path.
    """
    if isinstance(default, str) and default.startswith("${"):
        return None
    return Rule(type(default)) if isinstance(default, (bool, int, float, str)) else None
