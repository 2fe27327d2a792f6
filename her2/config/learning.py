"""Config: heads, training, folds, figures, pictures and the page."""

from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from her2.core.section import ClassName, Count, Ordered, Positive, Section, Share
from her2.metrics import selecting_metrics

if TYPE_CHECKING:
    Select = str
else:  # each metric declares whether it can
    Select = Literal[("loss", *selecting_metrics())]
HeatmapFormat = Literal["png", "parquet", "geojson", "ome_tiff"]
GroupingName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=60)]


class TrainingSection(Section):
    """How a fold is trained."""

    bag_size: Count = Field(128, description="tiles drawn from a slide at a training step")
    bags_per_batch: Count = Field(8, description="slides a step")
    epochs: Count = Field(60, description="at most; an epoch passes every train slide once")
    patience: Count = Field(15, description="epochs without a better one before stopping")
    select: Select = Field(
        "loss",
        description="what the best epoch (and the best trial of a search) has on the tune part: "
        "the least loss, or the most of a figure; of equals the lower loss wins",
    )
    optimiser: Literal["adamw", "adam"] = Field(
        "adamw",
        description="adam adds weight decay to the gradient, adamw takes it off the weights",
    )
    loss: Literal["cross_entropy", "ordinal"] = Field(
        "cross_entropy", description="ordinal: CORN (Shi 2023), for tasks with `ordinal: true`"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each label that is spread over all classes"
    )
    learning_rate: Positive = Field(1e-3, description="of the optimiser, at its highest")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: falls to zero at the last of `epochs`"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        1.0, description="the learning rate rises from zero over as many epochs first"
    )
    clip_norm: Positive | None = Field(
        1.0, description="longer gradients are shortened to this norm; null: they are not"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the matrix products, in training and prediction; weights and sums stay "
        "float32",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-3, description="of the optimiser")
    steps_per_epoch: Count | None = Field(
        None, description="batches an epoch; default: as many slides as the train part has"
    )
    balance: Literal["sampling", "loss", "slides", "none"] = Field(
        "sampling",
        description="sampling: train slides are drawn so that classes are even; loss: each once "
        "an epoch, and the classes weigh the same in the loss; slides: drawn uniformly, with "
        "replacement; none: each once an epoch",
    )
    standardise: bool = Field(
        True, description="features are scaled by the train part's mean and standard deviation"
    )

    @model_validator(mode="after")
    def _draws_fill_the_steps(self) -> "TrainingSection":
        if self.steps_per_epoch is not None and self.balance in ("none", "loss"):
            raise ValueError("`steps_per_epoch` needs drawn slides: `balance: sampling` or slides")
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "TrainingSection":
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 1:
            raise ValueError(
                f"`warmup_epochs` {self.warmup_epochs:g} leaves nothing of {self.epochs} `epochs`"
            )
        return self


class FoldsSection(Section):
    """Cross-validation."""

    number: Annotated[int, Field(ge=2)] = Field(
        5, description="test parts a repeat; with `sites: leave_one_out` there are as many as sites"
    )
    repeats: Count = Field(1, description="whole cross-validations, each with its own seed")
    tune: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.2, description="share of the non-test patients that picks the epoch"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="other folds of the same cohort; default: the `seed` of the whole run"
    )
    per_job: Count = Field(5, description="folds one job trains")
    sites: Literal["ignored", "stratified", "preserved", "leave_one_out"] = Field(
        "ignored",
        description="stratified: test parts are alike in sites too; preserved: a site is in one "
        "test part as a whole; leave_one_out: each test part is a site",
    )
    split: Literal["use", "ignore"] = Field(
        "use",
        description="of a manifest that has a column `split` (train, tune, test): use that one "
        "fixed split instead of cross-validation, or ignore the column",
    )
    max_shared_tiles: Share = Field(
        0.5,
        description="the run stops when slides of two patients share more than this share of "
        "their tiles (near-identical features); 1: it never does",
    )


class GroupingSection(Section):
    """Classes regrouped into two sides; classes of neither are left out."""

    negative: tuple[ClassName, ...] = Field(min_length=1, description="classes of the one side")
    positive: tuple[ClassName, ...] = Field(min_length=1, description="classes of the other")

    @property
    def classes(self) -> tuple[str, ...]:
        """All that it names."""
        return (*self.negative, *self.positive)

    @model_validator(mode="after")
    def _a_class_is_on_one_side(self) -> "GroupingSection":
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"class {twice[0]!r} is named twice; a class is on one side, once")
        return self


def her2_groupings() -> dict[str, GroupingSection]:
    """The questions that are asked of a HER2 score."""
    sides = {
        "0/1+ vs 2+/3+": (("0", "1+"), ("2+", "3+")),
        "0 vs 1+": (("0",), ("1+",)),
        "0/1+/2+ vs 3+": (("0", "1+", "2+"), ("3+",)),
    }
    return {
        name: GroupingSection(negative=negative, positive=positive)
        for name, (negative, positive) in sides.items()
    }


class EvaluationSection(Section):
    """Intervals, regroupings and operating points."""

    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="resamples of patients")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="of the intervals")
    groupings: Annotated[dict[GroupingName, GroupingSection], *Ordered] = Field(
        default_factory=her2_groupings,
        description="name -> classes of the `negative` and of the `positive` side; used in every "
        "task that has all of them. Default: `0/1+ vs 2+/3+`, `0 vs 1+`, `0/1+/2+ vs 3+`",
    )
    specificity: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="at which the sensitivity of the groupings is given"
    )
    sensitivity: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="at which the specificity of the groupings is given"
    )
    permutations: Annotated[int, Field(ge=100)] = Field(
        1000, description="times that labels are shuffled within the folds (controls)"
    )


class HeatmapSection(Section):
    """Attention: pictures and measures."""

    slides: Annotated[int, Field(ge=0)] = Field(
        8, description="held-out slides drawn for each task, encoder and head, spread over classes"
    )
    faithfulness_slides: Annotated[int, Field(ge=0)] = Field(
        40,
        description="held-out slides, spread over classes, that are predicted again without their "
        "most attended tiles (faithfulness); 0: none",
    )
    formats: tuple[HeatmapFormat, ...] = Field(
        get_args(HeatmapFormat),
        description="files of a drawn slide: the picture (always there, the report shows it), the "
        "table of its tiles, the tiles for QuPath, the overlay as a pyramid for viewers",
    )

    @field_validator("formats")
    @classmethod
    def _in_one_order(cls, value: tuple[HeatmapFormat, ...]) -> tuple[HeatmapFormat, ...]:
        """So that another order is not another job."""
        asked: set[HeatmapFormat] = {"png", *value}
        return tuple(name for name in get_args(HeatmapFormat) if name in asked)


class ReportSection(Section):
    """The report."""

    title: str = Field(
        "HER2 score from H&E slides", min_length=1, max_length=200, description="its heading"
    )
