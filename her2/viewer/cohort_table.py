"""`her2 view`: all slides of all cohorts as columns, for the page that lists, sorts and filters them.

Text that repeats comes as codes into a list of names, so that 20,000 slides are a small answer. The
page derives what follows from these columns (confidence, correct or wrong, counts).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from her2.cohort.cautions import Seen, is_brown, mpp_differs, mpp_words, scale_groups
from her2.config import Config, Task
from her2.core.errors import UserError
from her2.filters.registry import LISTED
from her2.report.format import without_folders
from her2.report.sections.gallery import MARKED_FROM
from her2.storage.entries import FeatureEntry, read_entries
from her2.viewer.cohort_numbers import PROBABILITY, Numbers, numbers_of
from her2.viewer.run import ViewedCohort, ViewedRun

CAUSES = tuple(one.name for one in LISTED)
"""Why tiles are rejected."""
REJECTED, DIFFERS, SCALE, BROWN, CAUTION = (
    f"{MARKED_FROM:.0%} of the tiles rejected, or more",
    "um/px not that of the file",
    "um/px unlike most slides",
    "brown: may be IHC",
    "caution of the prediction",
)
MARKS = (REJECTED, DIFFERS, SCALE, BROWN, CAUTION)
"""What may be wrong with a slide, which the page marks; a row has a bit for each."""
USABLE = "usable"
_TEXTS = ("patient_id", "site", "scanner", "status", "reason", "label")
_FACTS = ("slide_id", *_TEXTS, "tiles", "tissue_mm2", "mpp", *CAUSES, "marks", "cautions")
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
    found = [
        (cohort, numbers_of(run, cohort, model), _facts(run, cohort, encoder))
        for cohort in run.cohorts.values()
    ]
    classes = tuple(dict.fromkeys(name for _, numbers, _ in found for name in numbers.classes))
    parts = [_joined(*one, classes) for one in found]
    table = pl.concat(parts)
    # Not tables of one cohort after the other: a list to be read has one order of ids in each.
    codes = [index for index, part in enumerate(parts) for _ in range(len(part))]
    cohorts = [
        {"key": cohort.key, "title": cohort.title, "slides": len(part), "numbers": numbers.words}
        for (cohort, numbers, _), part in zip(found, parts, strict=True)
    ]
    return {
        "rows": len(table),
        "model": key,
        "models": list(run.models),
        "classes": list(classes),
        "causes": list(CAUSES),
        "marks": list(MARKS),
        "cohorts": cohorts,
        "columns": {
            "slide_id": table["slide_id"].to_list(),
            "cohort": {"names": [one["key"] for one in cohorts], "codes": codes},
            **{name: _coded(table[name]) for name in (*_TEXTS, "standing")},
            **{name: _coded(table[name], classes) for name in ("truth", "predicted")},
            "probabilities": {name: table[f"{PROBABILITY}{name}"].to_list() for name in classes},
            **{name: _rounded(table[name]) for name in ("tissue_mm2", "mpp")},
            "tiles": table["tiles"].to_list(),
            "rejected": {name: _rounded(table[name]) for name in CAUSES},
            "marks": table["marks"].to_list(),
            "cautions": {
                str(row): words for row, words in enumerate(table["cautions"].to_list()) if words
            },
        },
    }


def _joined(
    cohort: ViewedCohort, numbers: Numbers, facts: pl.DataFrame, classes: Sequence[str]
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
    return table.select(*_FACTS, "standing", "truth", "predicted", *probabilities)[order]


def _classes_of(labels: pl.Series, task: Task | None) -> pl.Series:
    """Return the class of each label; null where it is of none."""
    names = {
        value: name for name, values in (task.classes if task else {}).items() for value in values
    }
    return labels.replace_strict(names, default=None, return_dtype=pl.String)


def _facts(run: ViewedRun, cohort: ViewedCohort, encoder: str | None) -> pl.DataFrame:
    """Return what tiling found of each slide, on the grid of an encoder, and what may be wrong."""
    table = _on_grid(run, cohort.table, encoder)
    here = set(table.columns)

    def own(name: str, kind: Any) -> pl.Expr:
        return (pl.col(name) if name in here else pl.lit(None)).cast(kind).alias(name)

    tiles = own("tiles", pl.Int64).fill_null(0)
    counts = {name: own(f"rejected_{name}", pl.Int64).fill_null(0) for name in CAUSES}
    candidates = (
        tiles + own("not_drawn", pl.Int64).fill_null(0) + pl.sum_horizontal(counts.values())
    )
    table = table.select(
        "slide_id",
        *(own(name, pl.String) for name in _TEXTS if name != "label"),
        own("tiles", pl.Int64),
        own("tissue_mm2", pl.Float64),
        *(own(name, pl.Float64) for name in ("mpp_x", "mpp_y", "file_mpp_x", "file_mpp_y")),
        own("brown", pl.Float64),
        own("cautions", pl.String),
        # As in the report's gallery: of the tiles with enough tissue.
        *(
            (number / pl.max_horizontal(candidates, 1)).alias(name)
            for name, number in counts.items()
        ),
    ).with_columns(
        status=pl.col("status").fill_null("ok"),
        mpp=(pl.col("mpp_x") * pl.col("mpp_y")).sqrt(),
    )  # fmt: skip
    lost = _not_embedded(cohort, encoder)
    rows = list(table.iter_rows(named=True))
    wrong = [_wrong(row, odd) for row, odd in zip(rows, _odd_scales(rows), strict=True)]
    failed = [lost.get(row["slide_id"]) if row["status"] == "ok" else None for row in rows]
    return table.with_columns(
        pl.Series("status", [new[0] if new else row["status"]
                             for row, new in zip(rows, failed, strict=True)], dtype=pl.String),
        pl.Series("reason", [without_folders((new[1] if new else row["reason"]) or "") or None
                             for row, new in zip(rows, failed, strict=True)], dtype=pl.String),
        pl.Series("marks", [marks for marks, _ in wrong], dtype=pl.Int64),
        pl.Series("cautions", [words for _, words in wrong], dtype=pl.List(pl.String)),
    )  # fmt: skip


def _on_grid(run: ViewedRun, table: pl.DataFrame, encoder: str | None) -> pl.DataFrame:
    """Return one row per slide: on the encoder's grid or, where there is none, the first."""
    if "grid" not in table.columns:
        return table
    known = run.config.encoders
    grid = known[encoder].grid if encoder in known else min(run.config.all_grids, default="")
    own = table.filter(pl.col("grid") == grid)
    return own if len(own) else table.unique("slide_id", keep="first")


def _not_embedded(
    cohort: ViewedCohort, encoder: str | None
) -> Mapping[str, tuple[str, str | None]]:
    """Return the slides that were tiled and not embedded, each with status and reason."""
    if encoder is None:
        return {}
    found: dict[str, tuple[str, str | None]] = {}
    for path in sorted((cohort.folder / "features" / encoder).glob("*-of-*.json")):
        try:
            entries = read_entries(path, FeatureEntry)
        except UserError:  # of a run that is going on, or that was changed; the rest can be seen
            continue
        for name, entry in entries.items():
            if entry.status != "ok":
                found[name] = entry.status, entry.reason
    return found


def _odd_scales(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each slide the um/px of most slides, where its own is of another scale."""
    groups = scale_groups(
        Seen(slide_id=row["slide_id"], mpp=(row["mpp_x"], row["mpp_y"]))
        for row in rows
        if row["status"] == "ok" and row["mpp"]
    )
    if len(groups) < 2:
        return [""] * len(rows)
    most = max(groups, key=len)
    usual = {slide for _, slide in most}
    return [
        f"{most[len(most) // 2][0]:.4g}"
        if row["status"] == "ok" and row["mpp"] and row["slide_id"] not in usual
        else ""
        for row in rows
    ]


def _wrong(row: Mapping[str, Any], usual: str) -> tuple[int, list[str]]:
    """Return the bits of `MARKS` of a slide, and sentences."""
    found: dict[str, str] = {}
    if row["status"] == "ok" and sum(row[name] for name in CAUSES) >= MARKED_FROM:
        found[REJECTED] = ""
    if row["file_mpp_x"] and row["file_mpp_y"] and row["mpp"]:
        pair = (row["mpp_x"], row["mpp_y"]), (row["file_mpp_x"], row["file_mpp_y"])
        if mpp_differs(*pair):
            found[DIFFERS] = mpp_words(*pair)
    if usual:
        found[SCALE] = f"{row['mpp']:.4g} um/px, where most slides have about {usual}"
    if is_brown(row["brown"]):
        found[BROWN] = f"{row['brown']:.0%} of the tissue is brown, without eosin: IHC?"
    if row["cautions"]:
        found[CAUTION] = row["cautions"]
    bits = sum(1 << MARKS.index(name) for name in found)
    return bits, [words for words in found.values() if words]


def kind_of(reason: str, slide_id: str) -> str:
    """Return a reason without the slide's own id, files and numbers, so that equal ones meet."""
    words = re.sub(r"\S+\.\w{2,5}(?![\w.])|(?<![\w.])\d[\d,.]*", _unnamed,
                   reason.replace(slide_id, "…"))  # fmt: skip
    return re.sub(r"…(?:\s*…)+", "…", words) or "no reason is known"


def _unnamed(found: re.Match[str]) -> str:
    """Keep keys of the config, such as `cohort.root`, and a comma that ends a part."""
    text = found.group()
    if text.partition(".")[0] in Config.model_fields:
        return text
    return "…" + ("," if text.endswith(",") else "")


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers in text by value: `a-2` before `a-10`."""
    parts: Iterable[str] = re.findall(r"\d+|\D+", text)
    return [(0, int(one), one) if one.isdecimal() else (1, 0, one) for one in parts]


def _coded(values: pl.Series, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return text as codes into its names, which are sorted unless they are given."""
    if names is None:
        names = sorted(values.drop_nulls().unique().to_list(), key=natural)
    codes = dict(zip(names, range(len(names)), strict=True))
    return {
        "names": list(names),
        "codes": values.replace_strict(codes, default=-1, return_dtype=pl.Int64).to_list(),
    }


def _rounded(values: pl.Series) -> list[float | None]:
    return values.round(_DIGITS).to_list()
