"""Types and ranges of the values that no ``_target_`` takes, for each command."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

# The ranges that most values have; used by signatures too.
Count = Annotated[int, Ge(0)]
PositiveInt = Annotated[int, Ge(1)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Trainer:
    """``trainer:`` of conf/train.yaml."""

    epochs: PositiveInt
    max_steps: PositiveInt | None
    devices: PositiveInt
    batch_size: PositiveInt
    accumulate: PositiveInt
    accumulate_stats: Literal["batch", "step"]
    precision: Precision
    device: str
    channels_last: bool
    compile: bool
    clip_norm: Annotated[float, Gt(0)] | None
    workers: Count
    eval_every: PositiveInt
    patience: PositiveInt | None
    checkpoint_minutes: NotNegative
    keep_checkpoints: bool
    deterministic: bool
    log_every: PositiveInt
    sampling_every: PositiveInt
    num_pictures: Count


class Evaluation:
    """``evaluation:`` of conf/train.yaml and conf/evaluate.yaml."""

    backend: Literal["auto", "pycocotools", "faster_coco_eval"]
    max_detections: PositiveInt | None


class Wandb:
    """``wandb:`` of conf/train.yaml."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None
    group: str | None
    name: str | None
    method: str | None
    tags: list[str]
    dir: str


class SiteNumbers:
    """``site.<name>:``."""

    budget: PositiveInt
    positive_fraction: Share


class Factors:
    """``loss_weight.<name>:``; its keys are ``class`` and ``box``."""

    __annotations__ = {"class": NotNegative, "box": NotNegative}


class View:
    """How the network sees images: the keys of a data node that the model's node refers to."""

    min_size: PositiveInt | list[PositiveInt]
    max_size: PositiveInt
    anchor_sizes: list[Annotated[float, Gt(0)]] | None


class Splits:
    """How the images are cut into training and validation: keys of a data node."""

    folds: Annotated[int, Ge(2)] | None
    fold: Count | None
    val_fraction: Share | None
    split_seed: Count
    split_block: PositiveInt


class ImageOrder:
    """``data:`` of conf/train.yaml."""

    sampler: Literal["repeat_factor", "class_aware"] | None
    repeat_threshold: Annotated[float, Gt(0), Le(1)]


class Train:
    """conf/train.yaml."""

    seed: Count
    run_name: str
    resume: str
    done: str | None
    trainer: Trainer
    evaluation: Evaluation
    wandb: Wandb
    site: dict[str, SiteNumbers]
    loss_weight: dict[str, Factors]


class Evaluate:
    """conf/evaluate.yaml."""

    checkpoint: str
    data_root: str | None
    split: Literal["train", "val"]
    output: str | None
    batch_size: PositiveInt | None
    workers: Count
    device: str
    precision: Precision | Literal["run"]
    evaluation: Evaluation
    trust: list[str]


class Predict:
    """conf/predict.yaml."""

    checkpoint: str
    input: str
    recursive: bool
    output: str
    min_score: Share | dict[str, Share]
    contact_sheet: Count
    device: str
    precision: Precision | Literal["run"]
    trust: list[str]


class CheckData:
    """conf/check_data.yaml."""

    images: bool
    page: str | None


class Figures:
    """conf/figures.yaml."""

    checkpoint: str
    data_root: str | None
    split: Literal["train", "val"]
    images: PositiveInt
    output: str
    budget: dict[str, PositiveInt | None]
    alpha: Share
    gamma: NotNegative
    forgetting: list[Annotated[list[str], MinLen(3), MaxLen(3)]]
    wrong_labels: list[Annotated[list[str], MinLen(2)]]
    batch_size: PositiveInt
    workers: Count
    device: str
    precision: Precision
    trust: list[str]


class DataPage:
    """conf/data_page.yaml."""

    out: str


SCHEMAS: dict[str, type] = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "check_data": CheckData,
    "figures": Figures,
    "data_page": DataPage,
}
