"""Config: training, folds, evaluation, heatmaps and the report."""

import operator
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from her2.core.section import (
    Batch,
    ClassName,
    Count,
    Epochs,
    NotNegative,
    Ordered,
    Positive,
    Resamples,
    Section,
    Seed,
    Share,
)
from her2.metrics import selecting_metrics

if TYPE_CHECKING:
    Select = str
else:  # each metric declares if it can select
    Select = Literal[("loss", *selecting_metrics())]
Balance = Literal["sampling", "loss", "slides", "none"]
HeatmapFormat = Literal["png", "parquet", "geojson", "ome_tiff"]
GroupingName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=60)]
ColumnName = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
MAX_TILES_PER_STEP = 4_000_000
"""With 1,024 features in float32 they fill 16 GB."""
TISSUE = "amount of tissue"
"""Property of patients by which the controls give subgroups, computed from their slides."""


class TrainingSection(Section):
    """The training of a model."""

    bag_size: Annotated[int, Field(ge=1, le=100_000)] = Field(
        128, description="tiles drawn per slide in a training step"
    )
    bags_per_batch: Batch = Field(8, description="slides per step")
    epochs: Epochs = Field(60, description="maximum number of epochs, see `steps_per_epoch`")
    patience: Epochs = Field(15, description="epochs without improvement before training stops")
    select: Select = Field(
        "loss",
        description="criterion on the tuning set for the best epoch (and the best trial of a "
        "search): the lowest loss, or the highest value of a metric, with ties broken by the loss",
    )
    optimiser: Literal["adamw", "adam"] = Field(
        "adamw",
        description="adam adds weight decay to the gradient, adamw subtracts it from the weights",
    )
    loss: Literal["cross_entropy", "ordinal"] = Field(
        "cross_entropy", description="ordinal: CORN (Shi 2023), for tasks with `ordinal: true`"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each label that is spread evenly over all classes"
    )
    learning_rate: Positive = Field(1e-3, description="peak learning rate of the optimiser")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: the learning rate falls to zero at the last of `epochs`"
    )
    warmup_epochs: Annotated[float, Field(ge=0, le=100_000)] = Field(
        1.0, description="number of initial epochs in which the learning rate rises from zero"
    )
    clip_norm: Positive | None = Field(
        1.0, description="gradients are clipped to this norm; null: no clipping"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of matrix products in training and prediction; weights and sums "
        "stay float32",
    )
    weight_decay: NotNegative = Field(1e-3, description="weight decay of the optimiser")
    steps_per_epoch: Count | None = Field(
        None,
        description="batches per epoch; default: enough for as many slides as the training set has",
    )
    balance: Balance = Field(
        "sampling",
        description="sampling: training slides are drawn so that classes are equally frequent; "
        "loss: each slide once per epoch, with equal weights of the classes in the loss; slides: "
        "drawn uniformly with replacement; none: each slide once per epoch. Probabilities are "
        "corrected for it in the evaluation",
    )
    standardise: bool = Field(
        True, description="standardise features by the training set's mean and standard deviation"
    )

    @model_validator(mode="after")
    def _draws_fill_the_steps(self) -> "TrainingSection":
        if self.steps_per_epoch is not None and self.balance in ("none", "loss"):
            raise ValueError("`steps_per_epoch` needs `balance: sampling` or `balance: slides`")
        return self

    @model_validator(mode="after")
    def _a_step_fits_in_memory(self) -> "TrainingSection":
        tiles = self.bag_size * self.bags_per_batch
        if tiles > MAX_TILES_PER_STEP:
            raise ValueError(
                f"`bag_size` {self.bag_size} x `bags_per_batch` {self.bags_per_batch} are "
                f"{tiles:,} tiles in a step; at most {MAX_TILES_PER_STEP:,} are allowed"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "TrainingSection":
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 1:
            raise ValueError(
                f"`warmup_epochs` {self.warmup_epochs:g} must be less than `epochs` {self.epochs}"
            )
        return self


class SeededTrainingSection(TrainingSection):
    """The training of each fold, once or with several seeds."""

    seeds: Annotated[int, Field(ge=1, le=20)] = Field(
        1,
        description="number of times that each fold is trained, with other initial weights, draws "
        "and dropout each time; AUCs are means over the seeds, and their spread is reported. One "
        "does not show what another training would have given: at least 3 for results to publish",
    )

    @property
    def of_one_model(self) -> TrainingSection:
        """What a single training depends on."""
        return TrainingSection(**self.model_dump(exclude={"seeds"}))


class FoldsSection(Section):
    """Cross-validation, or the manifest's fixed split."""

    number: Annotated[int, Field(ge=2, le=1000)] = Field(
        5,
        description="folds per repeat; with `sites: leave_one_out`, it must be the number of sites",
    )
    repeats: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="complete cross-validations, each with its own seed"
    )
    tune: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.2, description="share of the non-test patients in the tuning set, which selects the epoch"
    )
    seed: Seed | None = Field(
        None, description="seed of the folds; default: the `seed` of the whole run"
    )
    per_job: Count = Field(5, description="models trained per job, all of one training seed")
    sites: Literal["ignored", "stratified", "preserved", "leave_one_out"] = Field(
        "ignored",
        description="stratified: test sets are also balanced by site; preserved: each site is "
        "entirely in one test set; leave_one_out: each test set is one site",
    )
    split: Literal["use", "ignore"] = Field(
        "use",
        description="if the manifest has a column `split` (train, tune, test): use this fixed "
        "split instead of cross-validation, or ignore the column",
    )
    max_shared_tiles: Share = Field(
        0.5,
        description="the run stops if slides of two patients, or of an external and the "
        "development cohort, have a larger share of tiles in common (near-identical features); "
        "1: never",
    )


class GroupingSection(Section):
    """Classes grouped into negative and positive; all other classes are left out."""

    negative: tuple[ClassName, ...] = Field(min_length=1, description="negative classes")
    positive: tuple[ClassName, ...] = Field(min_length=1, description="positive classes")

    @property
    def classes(self) -> tuple[str, ...]:
        """Return all its classes."""
        return (*self.negative, *self.positive)

    @model_validator(mode="after")
    def _a_class_is_on_one_side(self) -> "GroupingSection":
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise ValueError(f"class {repeated[0]!r} is listed twice; list each class once")
        return self


def her2_groupings() -> dict[str, GroupingSection]:
    """Return the clinically relevant groupings of HER2 scores."""
    sides = {
        "0/1+ vs 2+/3+": (("0", "1+"), ("2+", "3+")),
        "0 vs 1+": (("0",), ("1+",)),
        "0/1+/2+ vs 3+": (("0", "1+", "2+"), ("3+",)),
    }
    return {
        name: GroupingSection(negative=negative, positive=positive)
        for name, (negative, positive) in sides.items()
    }


def own_grouping(class_names: tuple[str, ...]) -> str:
    """Return the name of the grouping that a task with two classes is by itself."""
    return " vs ".join(class_names)


class EvaluationSection(Section):
    """Confidence intervals, groupings, operating points and controls."""

    bootstrap: Resamples = Field(
        2000,
        description="bootstrap resamples of patients, for intervals of most metrics other than "
        "AUCs, the choice of thresholds, and what the best of several models is worth",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95, description="confidence level of the intervals"
    )
    groupings: Annotated[dict[GroupingName, GroupingSection], *Ordered] = Field(
        default_factory=her2_groupings,
        description="name -> `negative` and `positive` classes; used in every task that has all "
        "of them. Default: `0/1+ vs 2+/3+`, `0 vs 1+`, `0/1+/2+ vs 3+`",
    )
    specificity: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="specificity at which the sensitivity of the groupings is given"
    )
    sensitivity: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="sensitivity at which the specificity of the groupings is given"
    )
    selection: Literal["none", "nested"] = Field(
        "none",
        description="nested: also evaluate the pipeline that picks encoder and head in each fold "
        "by the macro AUC on its tuning set (docs/selection.md); nothing is trained for it",
    )
    prevalence: dict[GroupingName, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=dict,
        description="name of a grouping -> share of the positive side where the model would be "
        "used; PPV and NPV are then also given at this prevalence",
    )
    permutations: Resamples = Field(
        1000, description="permutations of the labels within the test sets (controls)"
    )
    subgroups: tuple[ColumnName, ...] = Field(
        (),
        exclude_if=operator.not_,
        description="further columns of the manifest whose values define subgroups (controls), "
        "beside `site` and `scanner`; numbers of more than 10 values are cut into thirds",
    )
    covariates: tuple[ColumnName, ...] = Field(
        (),
        exclude_if=operator.not_,
        description="further columns of the manifest from which the covariates alone predict the "
        "label (controls): a number where all its values are numbers, else a category",
    )

    @property
    def columns(self) -> dict[str, str]:
        """Return the columns of the manifest that the controls ask for -> the key that names it."""
        named = dict.fromkeys(self.covariates, "evaluation.covariates")
        return named | dict.fromkeys(self.subgroups, "evaluation.subgroups")

    @property
    def without_columns(self) -> "EvaluationSection":
        """Return the section of the jobs that do not read these columns."""
        return self.model_copy(update={"subgroups": (), "covariates": ()})

    @model_validator(mode="after")
    def _a_column_is_named_once(self) -> "EvaluationSection":
        for key in ("subgroups", "covariates"):
            names = getattr(self, key)
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{key}: {repeated[0]!r} is listed twice; list each column once")
        return self

    @model_validator(mode="after")
    def _no_subgroup_is_named_as_the_amount_of_tissue(self) -> "EvaluationSection":
        if TISSUE in self.subgroups:
            raise ValueError(
                f"subgroups: {TISSUE!r} is the name of a property that the controls compute; "
                "rename the column"
            )
        return self


class HeatmapSection(Section):
    """Attention maps, and measures of attention."""

    slides: Annotated[int, Field(ge=0, le=100_000)] = Field(
        8, description="test slides drawn per task, encoder and head, spread over the classes"
    )
    faithfulness_slides: Annotated[int, Field(ge=0, le=100_000)] = Field(
        40,
        description="test slides, spread over the classes, that are predicted again without their "
        "most attended tiles (faithfulness); 0: none",
    )
    formats: tuple[HeatmapFormat, ...] = Field(
        get_args(HeatmapFormat),
        description="files per drawn slide: the picture (always made, for the report), the table "
        "of its tiles, the tiles for QuPath, the overlay as a pyramid for viewers",
    )

    @field_validator("formats")
    @classmethod
    def _in_one_order(cls, value: tuple[HeatmapFormat, ...]) -> tuple[HeatmapFormat, ...]:
        """Sort the formats, so that another order does not change the spec."""
        asked: set[HeatmapFormat] = {"png", *value}
        return tuple(name for name in get_args(HeatmapFormat) if name in asked)


class ReportSection(Section):
    """The report."""

    title: str = Field(
        "HER2 score from H&E slides",
        min_length=1,
        max_length=200,
        description="heading of the report",
    )
