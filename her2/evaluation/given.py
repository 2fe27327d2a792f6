"""Beside stage 2: the figures of this package for anybody's predictions, without its pipeline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from her2.config import EvaluationSection, Task, parse_section
from her2.config.jobs import CompareSpec, EvaluateSpec
from her2.core.errors import UserError, first_line, problem_list
from her2.evaluation.compare import comparison_tables
from her2.evaluation.paired import pair_models
from her2.evaluation.stage import evaluation_tables

PROBABILITY = "prob_"
ROLES = ("test", "tune", "predict")
_NUMBERS = ("repeat", "fold", "seed")
_TEXTS = ("patient_id", "slide_id", "model", "role")
_TASK, _HEAD, _ONE = "given", "given", "model"
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation:
    """The figures of one model, or of several that are compared.

    `tables` are those of docs/statistics.md by name, with the column `model` in front, and
    `comparison` where there are several models. `assumed` says in sentences what the predictions
    did not tell.
    """

    classes: tuple[str, ...]
    models: tuple[str, ...]
    assumed: tuple[str, ...]
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the macro AUC of each model with its interval, and what was assumed."""
        patients = self.metrics.filter(level="patient", metric="auc")
        rows = patients.filter(pl.col("class") == "macro").iter_rows(named=True)
        lines = [f"{row['model']}: AUC (macro) {_figure(row)}, {row['n']:,} patients"
                 for row in rows]  # fmt: skip
        said = [f"assumed: {one}" for one in self.assumed]
        return "\n".join([f"<Evaluation of {', '.join(self.classes)}", *lines, *said]) + ">"

    @property
    def metrics(self) -> pl.DataFrame:
        """Return every figure with its interval, at patient level and, with slides, at theirs."""
        return self.tables["metrics"]

    @property
    def calibration(self) -> pl.DataFrame:
        """Return the calibration of the probabilities, with intervals."""
        return self.tables["calibration"]

    @property
    def reliability(self) -> pl.DataFrame:
        """Return the observed share of each class among rows of similar probability."""
        return self.tables["reliability"]

    @property
    def comparison(self) -> pl.DataFrame:
        """Return the difference between each two models in each AUC, on the patients of both.

        Raises:
            UserError: there is one model.
        """
        if "comparison" not in self.tables:
            raise UserError("comparison: there is one model; tell several apart by a column model.")
        return self.tables["comparison"]


def evaluate(
    predictions: pl.DataFrame | Mapping[str, Any] | Path | str | Any,
    *,
    classes: Sequence[str] | None = None,
    ordinal: bool = False,
    evaluation: EvaluationSection | Mapping[str, Any] | None = None,
    seed: int = 2411,
) -> Evaluation:
    """Evaluate a table of predictions: figures with intervals, calibration, comparisons.

    Columns of the table:

    - `patient_id`, and `slide_id` where patients have several slides; one of them may be absent.
    - `target`: the true class by name, by its place among the classes from 0, or false and true.
    - `prob_CLASS` for each class, which sum to one; for two classes one may be left out.
    - `repeat` and `fold`, from 0: the cross-validation that the predictions come from. Without
      `fold` it is one test set that no model was trained on.
    - `model`: which model predicted it, for a comparison on the same patients.
    - `seed`: its training seed. `role`: test, tune (the tuning set, for temperatures and
      thresholds), or predict for slides without a target; default: test.

    Args:
        predictions: a polars or pandas frame, columns by name, or a .csv or .parquet file.
        classes: the classes in their order; default: the order of the columns.
        ordinal: whether the classes are ordered, so that kappa is meaningful.
        evaluation: the section `evaluation` of a config, such as `{"confidence": 0.9,
            "bootstrap": 500}`; default: its defaults.
        seed: seed of the resamples.

    Raises:
        UserError: the table cannot be evaluated; the message names columns, rows and values.

    >>> import her2
    >>> table = {
    ...     "patient_id": ["p1", "p2", "p3", "p4", "p5", "p6"],
    ...     "target": ["low", "low", "low", "high", "high", "high"],
    ...     "prob_low": [0.9, 0.8, 0.4, 0.3, 0.6, 0.1],
    ...     "prob_high": [0.1, 0.2, 0.6, 0.7, 0.4, 0.9],
    ... }
    >>> found = her2.evaluate(table)
    >>> found
    <Evaluation of low, high
    model: AUC (macro) 0.889 [0.305, 0.992], 6 patients
    assumed: the classes are in the order of their columns: low, high
    assumed: each row is a patient, of whom it is the only slide
    assumed: no model was trained on these patients: there is no column fold>
    >>> row = found.metrics.row(0, named=True)
    >>> row["metric"], row["class"], round(row["value"], 3)
    ('auc', 'low', 0.889)
    """
    given = _frame(predictions)
    section = parse_section(EvaluationSection, evaluation, name="evaluation")
    names, assumed = _classes(given, classes)
    values = {"label": "target", "classes": {name: [name] for name in names}, "ordinal": ordinal}
    task = parse_section(Task, values, name="predictions")
    table, more = _completed(given, names)
    levels = ("patient", "slide") if "slide_id" in given.columns else ("patient",)
    models = tuple(table["model"].unique(maintain_order=True))
    parts = {name: table.filter(model=name).drop("model") for name in models}
    spec = EvaluateSpec(task=task, chunks=(), evaluation=section, seed=seed)
    each = {name: evaluation_tables(spec, part) for name, part in parts.items()}
    found = {name: _stacked(each, name, levels) for name in next(iter(each.values()))}
    if len(models) > 1:
        found["comparison"] = _comparison(parts, task, section, seed)
    return Evaluation(names, models, (*assumed, *more), found)


def _comparison(
    parts: Mapping[str, pl.DataFrame], task: Task, section: EvaluationSection, seed: int
) -> pl.DataFrame:
    paired = pair_models({(name, _HEAD): part for name, part in parts.items()}, task, section)
    spec = CompareSpec(
        tasks={_TASK: task},
        encoders=tuple(parts),
        domains=dict.fromkeys(parts, "none"),
        heads=(_HEAD,),
        evaluation=section,
        seed=seed,
    )
    return comparison_tables({_TASK: paired}, spec)[0].drop("task", "kind", "within", "family")


def _stacked(
    each: Mapping[str, Mapping[str, pl.DataFrame]], name: str, levels: Sequence[str]
) -> pl.DataFrame:
    """Return a table of every model, with the model's name in front."""
    parts = [
        tables[name].select(pl.lit(model).alias("model"), pl.all())
        for model, tables in each.items()
    ]
    table = pl.concat(parts, how="diagonal_relaxed")
    return table.filter(pl.col("level").is_in(levels)) if "level" in table.columns else table


def _frame(given: Any) -> pl.DataFrame:
    """Return what was given as a polars frame."""
    if isinstance(given, pl.DataFrame):
        return given
    what = given if isinstance(given, Path | str) else type(given).__name__
    try:
        if isinstance(given, Path | str):
            path = Path(given)
            return pl.read_parquet(path) if path.suffix == ".parquet" else _csv(path)
        if isinstance(given, Mapping):
            return pl.DataFrame(dict(given), strict=False)
        if hasattr(given, "iloc"):  # of pandas, which need not be installed
            return pl.from_pandas(given)
    except Exception as error:  # polars raises any type on what is no table
        raise UserError(
            f"predictions, {what}: cannot be read as a table ({first_line(error)})."
        ) from None
    raise UserError(
        f"predictions, {what}: is no table; give a polars or pandas frame, columns by name, or a "
        ".csv or .parquet file."
    )


def _csv(path: Path) -> pl.DataFrame:
    """Read a .csv file: names as they are written, with leading zeros, and the rest by all rows."""
    columns = pl.read_csv(path, n_rows=0).columns
    texts = {name: pl.String for name in _TEXTS if name in columns}
    return pl.read_csv(path, schema_overrides=texts, infer_schema_length=None)


def _classes(given: pl.DataFrame, asked: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes, and what was assumed of them."""
    found = [c.removeprefix(PROBABILITY) for c in given.columns if c.startswith(PROBABILITY)]
    lacking = [c for c in ("target", *(() if found else ("prob_CLASS",))) if c not in given.columns]
    if lacking or not {"patient_id", "slide_id"} & {*given.columns}:
        ids = [] if {"patient_id", "slide_id"} & {*given.columns} else ["patient_id or slide_id"]
        raise UserError(
            f"predictions: the column(s) {', '.join([*ids, *lacking])} are missing; the columns "
            f"are {', '.join(given.columns)}."
        )
    names, assumed = list(asked or found), []
    if len(found) == 1 and asked is None:
        values = given["target"].drop_nulls().cast(pl.String).unique().sort().to_list()
        others = [value for value in values if value != found[0]]
        if len(others) != 1:
            raise UserError(
                f"predictions: with prob_{found[0]} alone, `target` needs exactly one other class, "
                f"and has {', '.join(others) or 'none'}; give a column prob_CLASS for each class."
            )
        names = [others[0], found[0]]
        assumed.append(f"prob_{others[0]} is 1 - prob_{found[0]}")
    elif asked is None:
        assumed.append(f"the classes are in the order of their columns: {', '.join(names)}")
    unknown = [name for name in found if name not in names]
    absent = [name for name in names if name not in found]
    if unknown or len(names) < 2 or (absent and not (len(names) == 2 and len(absent) == 1)):
        raise UserError(
            f"predictions: columns prob_CLASS are there for {', '.join(found)}, and the classes "
            f"are {', '.join(names)}; give one for each class, and at least two classes."
        )
    return tuple(names), assumed


def _completed(given: pl.DataFrame, classes: Sequence[str]) -> tuple[pl.DataFrame, list[str]]:
    """Return the predictions table of a run, and what was assumed to complete it.

    Raises:
        UserError: rows cannot be evaluated; all of them are named.
    """
    assumed = []
    given_columns = {name: given[name] for name in given.columns}
    columns = dict(given_columns)
    one_each = "slide_id" not in columns
    if one_each:
        assumed.append("each row is a patient, of whom it is the only slide")
        columns["slide_id"] = columns["patient_id"]
    if "patient_id" not in columns:
        assumed.append("each slide is of another patient: there is no column patient_id")
        columns["patient_id"] = columns["slide_id"]
    if "fold" not in columns:
        assumed.append("no model was trained on these patients: there is no column fold")
    if _by_place(columns["target"], classes):
        words = ("false", "true") if columns["target"].dtype == pl.Boolean else range(len(classes))
        pairs = ", ".join(f"{word} is {name}" for word, name in zip(words, classes, strict=True))
        assumed.append(f"of the targets, {pairs}")
    table = pl.DataFrame(
        {
            "slide_id": columns["slide_id"].cast(pl.String),
            "patient_id": columns["patient_id"].cast(pl.String),
            "model": columns.get("model", pl.Series([_ONE] * len(given))).cast(pl.String),
            **{
                name: columns.get(name, pl.Series([0] * len(given))).cast(pl.Int32, strict=False)
                for name in _NUMBERS
            },
            "role": columns.get("role", pl.Series(["test"] * len(given))).cast(pl.String),
            "target": _targets(columns["target"], classes),
            **_probabilities(columns, classes),
        }
    )
    if problems := [*_problems(table, given_columns, classes)]:
        raise problem_list(
            f"predictions: {len(problems)} problem(s); rows are counted from 1, without the header",
            problems,
            limit=20,
        )
    return table, assumed


def _targets(given: pl.Series, classes: Sequence[str]) -> pl.Series:
    """Return class indices, null for what is no class."""
    if _by_place(given, classes):
        return pl.Series(
            [one if one is not None and 0 <= one < len(classes) else None for one in given],
            dtype=pl.Int64,
        )
    places = {name: place for place, name in enumerate(classes)}
    if given.dtype == pl.Boolean:
        places = {name.lower(): place for name, place in places.items()}
    return pl.Series([places.get(one) for one in given.cast(pl.String)], dtype=pl.Int64)


def _by_place(given: pl.Series, classes: Sequence[str]) -> bool:
    """Return whether targets are the places of their classes, as none is called like them."""
    if given.dtype == pl.Boolean:
        return len(classes) == 2 and {name.lower() for name in classes} != {"false", "true"}
    return given.dtype.is_integer() and not {str(one) for one in given.drop_nulls()} <= {*classes}


def _probabilities(
    columns: Mapping[str, pl.Series], classes: Sequence[str]
) -> dict[str, pl.Series]:
    found = {
        name: columns[f"{PROBABILITY}{name}"].cast(pl.Float64, strict=False)
        for name in classes
        if f"{PROBABILITY}{name}" in columns
    }
    (first, *_) = found.values()
    return {f"{PROBABILITY}{name}": found.get(name, 1 - first) for name in classes}


def _problems(
    table: pl.DataFrame, given: Mapping[str, pl.Series], classes: Sequence[str]
) -> Iterator[str]:
    """Yield what is wrong, with column, row and value."""
    if not len(table):
        yield "there are no rows"
        return
    for column in ("slide_id", "patient_id", "model", *_NUMBERS, "role"):
        for row in _first(table[column].is_null()):
            yield f"column {column!r}, row {row + 1}: {_value(given, column, row)} is no value"
    for row in _first(~table["role"].is_in(ROLES).fill_null(True)):
        yield f"column 'role', row {row + 1}: {table['role'][row]!r}; it is {', '.join(ROLES)}"
    for row in _first(table["target"].is_null() & (table["role"] != "predict")):
        yield (
            f"column 'target', row {row + 1}: {_value(given, 'target', row)} is none of the "
            f"classes {', '.join(classes)}"
        )
    names = [name for one in classes if (name := f"{PROBABILITY}{one}") in given]
    values = table.select(names).to_numpy()
    for own, name in zip(values.T, names, strict=True):
        bad = ~(np.isfinite(own) & (own >= 0) & (own <= 1))
        for row in _first(pl.Series(bad)):
            shown = _value(given, name, row)
            yield f"column {name!r}, row {row + 1}: {shown} is no probability from 0 to 1"
    sums = values.sum(axis=1) if len(names) == len(classes) else np.ones(len(values))
    for row in _first(pl.Series(np.abs(sums - 1) > _SUM_TOLERANCE)):
        yield f"columns {', '.join(names)}, row {row + 1}: sum to {sums[row]:.4g}, not to 1"
    tested = table.with_row_index("row")
    key = ["model", "repeat", "seed", "role", "slide_id"]
    named = "slide_id" if "slide_id" in given else "patient_id"
    again = tested.filter(table["role"] != "tune").group_by(key, maintain_order=True).agg("row")
    for *_, slide, rows in again.filter(pl.col("row").list.len() > 1).head(5).iter_rows():
        yield (
            f"column {named!r}, rows {', '.join(str(row + 1) for row in rows[:5])}: {slide!r} is "
            "there again; tell rounds apart by the columns repeat and seed, models by model"
        )
    classes_of = tested.drop_nulls("target").group_by("patient_id", maintain_order=True)
    torn = classes_of.agg(pl.col("target").unique().sort(), pl.col("row").first())
    for patient, found, row in torn.filter(pl.col("target").list.len() > 1).head(5).iter_rows():
        of = ", ".join(classes[one] for one in found)
        yield f"column 'patient_id', row {row + 1}: {patient!r} has targets of two classes ({of})"
    held_out = tested.filter(table["role"] == "test")
    sides = held_out.group_by("model", "repeat", "seed", "patient_id", maintain_order=True)
    split = sides.agg(pl.col("fold").unique().sort(), pl.col("row").first())
    for *_, patient, folds, row in split.filter(pl.col("fold").list.len() > 1).head(5).iter_rows():
        yield (
            f"column 'fold', row {row + 1}: patient {patient!r} is in the test sets of folds "
            f"{', '.join(map(str, folds))} of one repeat: a model was trained on the patient"
        )


def _first(bad: pl.Series, count: int = 5) -> list[int]:
    """Return the first rows where a problem is."""
    return bad.fill_null(False).arg_true().head(count).to_list()


def _value(given: Mapping[str, pl.Series], column: str, row: int) -> str:
    """Return a value as it was given; `nothing` for an empty cell."""
    value = given[column][row] if column in given else None
    return "nothing" if value is None else repr(value)


def _figure(row: Mapping[str, Any]) -> str:
    """Return `0.889 [0.305, 0.992]`, or why it is not defined."""
    if row["value"] is None:
        return str(row["note"])
    ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{ends}"
