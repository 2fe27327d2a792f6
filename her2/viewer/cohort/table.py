"""`her2 view`: all slides of all cohorts as columns, for the page that lists and filters them.

Text that repeats comes as codes into a list of names, so that 20,000 slides are a small answer. The
page derives what follows from these columns (confidence, correct or wrong, counts).
"""

import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from her2.config import Config, Task
from her2.viewer.cohort.facts import MARKS, TEXTS, causes, cohort_facts
from her2.viewer.cohort.numbers import PROBABILITY, Numbers, numbers_of
from her2.viewer.run import ViewedCohort, ViewedRun

USABLE = "usable"
_TEXTS = (*TEXTS, "label")
_FACTS = ("slide_id", *_TEXTS, "tiles", "tissue_mm2", "mpp", "marks")
_NUMBERS = re.compile(r"([0-9]+)")
_LONGEST_REASON = 2000
"""Of the reasons that are grouped, as the time for it grows with the square of the length."""
_DIGITS = 5
"""Of shares and sizes; probabilities are exact."""


def cohort_table(run: ViewedRun, key: str | None) -> dict[str, Any]:
    """Return all slides, with the predictions of a model.

    Args:
        run: the run.
        key: one of its models, or None where there is none yet.

    Returns:
        `rows` (their number), `model`, `models` (keys), `classes`, `causes` (of rejected tiles),
        `marks` (names of bits), `cohorts` (`key`, `title`, `slides`, and in `numbers` which numbers
        its predictions are), and `columns`: `slide_id` and numbers as lists with null; texts and
        classes as `{names, codes}`, where code -1 is null; `probabilities` and `rejected` as lists
        by class and cause; `cautions` as sentences by number of the row. Rows are in the order of
        cohorts, then of ids, with numbers in them by value.

    Raises:
        NotThereError: there is no such model.
        UserError: a table is damaged.
    """
    model = None if key is None else run.model(key)
    encoder = None if model is None else model.encoder
    numbers = [numbers_of(run, cohort, model) for cohort in run.cohorts.values()]
    classes = tuple(dict.fromkeys(name for own in numbers for name in own.classes))
    reasons = causes(run)
    parts = []
    cautions: dict[tuple[str, str], list[str]] = {}
    for cohort, own in zip(run.cohorts.values(), numbers, strict=True):
        facts, sentences = cohort_facts(run, cohort, encoder)
        parts.append(_joined(cohort, own, facts, classes, reasons))
        cautions |= {(cohort.key, slide): words for slide, words in sentences.items()}
    table = pl.concat(parts)
    keys = [
        (cohort, slide)
        for cohort, part in zip(run.cohorts, parts, strict=True)
        for slide in part["slide_id"]
    ]
    # Nobody reads a list of patients, and sorting it would take longer than all the rest.
    patients = table["patient_id"].drop_nulls().unique(maintain_order=True).to_list()
    cohorts = [
        {"key": cohort.key, "title": cohort.title, "slides": len(part), "numbers": own.words}
        for cohort, part, own in zip(run.cohorts.values(), parts, numbers, strict=True)
    ]
    return {
        "rows": len(table),
        "model": key,
        "models": list(run.models),
        "classes": list(classes),
        "causes": list(reasons),
        "marks": list(MARKS),
        "cohorts": cohorts,
        "columns": {
            "slide_id": [slide for _, slide in keys],
            "cohort": _coded(pl.Series([cohort for cohort, _ in keys]), list(run.cohorts)),
            "patient_id": _coded(table["patient_id"], patients),
            **{name: _coded(table[name]) for name in (*_TEXTS[1:], "standing")},
            **{name: _coded(table[name], classes) for name in ("truth", "predicted")},
            "probabilities": {name: table[f"{PROBABILITY}{name}"].to_list() for name in classes},
            **{name: _rounded(table[name]) for name in ("tissue_mm2", "mpp")},
            "tiles": table["tiles"].to_list(),
            "rejected": {name: _rounded(table[name]) for name in reasons},
            "marks": table["marks"].to_list(),
            "cautions": {
                str(row): cautions[one] for row, one in enumerate(keys) if one in cautions
            },
        },
    }


def _joined(
    cohort: ViewedCohort,
    numbers: Numbers,
    facts: pl.DataFrame,
    classes: Sequence[str],
    reasons: Sequence[str],
) -> pl.DataFrame:
    """Return the facts of a cohort's slides with their predictions, in order of ids."""
    label = f"label_{numbers.task.label}" if numbers.task else ""
    labels = cohort.table.unique("slide_id", keep="first").select(
        "slide_id",
        label=(pl.col(label) if label in cohort.table.columns else pl.lit(None)).cast(pl.String),
    )
    table = facts.join(labels, on="slide_id", how="left").join(
        numbers.table, on="slide_id", how="left"
    )
    own = _classes_of(table["label"], numbers.task)
    table = table.with_columns(
        truth=pl.when(pl.col("predicted").is_null()).then(own).otherwise(pl.col("truth")),
        standing=pl.Series(
            [
                USABLE if status == "ok" else f"{status}: {kind_of(reason or '', slide)}"
                for slide, status, reason in table.select("slide_id", "status", "reason").rows()
            ],
            dtype=pl.String,
        ),
        **{
            name: pl.lit(None, pl.Float64)
            for name in (f"{PROBABILITY}{one}" for one in classes)
            if name not in table.columns
        },
    )
    ids = table["slide_id"].to_list()
    order = sorted(range(len(ids)), key=lambda index: natural(ids[index]))
    probabilities = [f"{PROBABILITY}{name}" for name in classes]
    return table.select(*_FACTS, *reasons, "standing", "truth", "predicted", *probabilities)[order]


def _classes_of(labels: pl.Series, task: Task | None) -> pl.Series:
    """Return the class of each label; null where it is of none."""
    names = {
        value: name for name, values in (task.classes if task else {}).items() for value in values
    }
    return labels.replace_strict(names, default=None, return_dtype=pl.String)


def kind_of(reason: str, slide_id: str) -> str:
    """Return a reason without the slide's own id, files and numbers, so that equal ones meet."""
    # A slide may be called `a`, which is no reason to take that letter out of all words.
    own = re.compile(rf"(?<![\w.-]){re.escape(slide_id)}(?![\w-])")
    words = re.sub(r"\S+\.\w{2,5}(?![\w.])|(?<![\w.])\d[\d,.]*", _unnamed,
                   own.sub("…", reason[:_LONGEST_REASON]))  # fmt: skip
    return re.sub(r"…(?:\s*…)+", "…", words) or "no reason is known"


def _unnamed(found: re.Match[str]) -> str:
    """Keep keys of the config, such as `cohort.root`, and a comma that ends a part."""
    text = found.group()
    if text.partition(".")[0] in Config.model_fields:
        return text
    return "…" + ("," if text.endswith(",") else "")


def natural(text: str) -> list[str | tuple[int, str]]:
    """Return a key that sorts numbers in text by value: `a-2` before `a-10`."""
    # Text and numbers alternate, so that only like is compared with like. A number is compared by
    # its digits, however many there are.
    parts: list[str | tuple[int, str]] = list(_NUMBERS.split(text))
    digits = [str(one).lstrip("0") for one in parts[1::2]]
    parts[1::2] = [(len(one), one) for one in digits]
    return parts


def _coded(values: pl.Series, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return text as codes into its names, which are sorted unless they are given."""
    if names is None:
        names = sorted(values.drop_nulls().unique(maintain_order=True).to_list(), key=natural)
    codes = dict(zip(names, range(len(names)), strict=True))
    return {
        "names": list(names),
        "codes": values.replace_strict(codes, default=-1, return_dtype=pl.Int64).to_list(),
    }


def _rounded(values: pl.Series) -> list[float | None]:
    return values.fill_nan(None).round(_DIGITS).to_list()
