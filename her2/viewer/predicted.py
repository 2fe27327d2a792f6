"""`her2 view`: slides that `her2 predict` has predicted with a bundle, as a cohort to look at.

Their table has no truth, and names no files: the slides are found again where they were given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from her2.cohort.manifest import Cohort, SlideRow
from her2.config import Config
from her2.core.errors import UserError
from her2.core.files import parse_json
from her2.core.reading import path_problem
from her2.core.section import is_name
from her2.explanation.places import RunPlaces
from her2.prediction.inputs import find_slides
from her2.prediction.options import FIRST_COLUMNS, SLIDE
from her2.storage.cache import DEFAULT
from her2.viewer.run import PREDICTED, ViewedCohort, ViewedRun

_PROBABILITY = "prob_"
_TEXTS = ("slide_id", "patient_id", "status", "reason", "predicted", "cautions")


@dataclass(frozen=True, slots=True)
class Predictions:
    """What is looked at.

    Attributes:
        table: that of `her2 predict`, .csv or .parquet.
        slides: the folder, slide file or manifest that was given to it, if it is here.
        heatmaps: the folder of its `--heatmaps`, if any.
    """

    table: Path
    slides: Path | None = None
    heatmaps: Path | None = None


def with_predictions(run: ViewedRun | None, given: Predictions) -> ViewedRun:
    """Return a run with one more cohort, `predicted`; without a run, with this one alone.

    The cohort's `table` has a row per slide, with the columns of `her2 predict` (`prob_<class>`,
    `cautions` and others).

    Raises:
        UserError: the table is none of `her2 predict`, or the slides or pictures are not there.
    """
    table = read_predictions(given.table)
    if run is None:
        places = RunPlaces(_stand_in(given.table, table), Path.cwd())
        folder = given.table.absolute()
        run = ViewedRun(folder=folder, places=places, cohorts={}, models={})
    rows = _rows(table, given.slides)
    cohort = ViewedCohort(
        key=PREDICTED,
        title="predicted",
        synthetic=run.config.cohort.synthetic,
        folder=given.table.absolute().parent,
        table=_with_places(table, rows).with_columns(grid=pl.lit(_grid(given.table, table))),
        cohort=rows,
        rows={row.slide_id: row for row in rows.rows},
        masks=None,
        drawn=_drawn(given.heatmaps),
        tile_px=_tile_px(given.table),
    )
    return replace(run, cohorts={**run.cohorts, PREDICTED: cohort})


def read_predictions(path: Path) -> pl.DataFrame:
    """Return the rows of slides of a table of `her2 predict`.

    Raises:
        UserError: it cannot be read, or is another table.
    """
    if problem := path_problem(path):
        raise UserError(f"--bundle-predictions {path}: {problem}.")
    read = pl.read_parquet if path.suffix == ".parquet" else _read_csv
    try:
        table = read(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"--bundle-predictions {path}: is no table ({error}).") from None
    if tuple(table.columns[: len(FIRST_COLUMNS)]) != FIRST_COLUMNS:
        raise UserError(
            f"--bundle-predictions {path}: is no table of `her2 predict --bundle`, which begins "
            f"with the columns {', '.join(FIRST_COLUMNS)}."
        )
    slides = table.filter(pl.col("level") == SLIDE).drop("level")
    if slides["slide_id"].null_count() or slides["slide_id"].is_duplicated().any():
        raise UserError(f"--bundle-predictions {path}: does not have each slide once, by its id.")
    slides = slides.with_columns(pl.col(name).cast(pl.String) for name in _TEXTS)
    for column in ("slide_id", "patient_id"):
        if wrong := [one for one in slides[column].drop_nulls() if not is_name(one)]:
            raise UserError(f"--bundle-predictions {path}: {wrong[0]!r} is no {column}.")
    return slides


def _read_csv(path: Path) -> pl.DataFrame:
    """Read a CSV in which only the columns of numbers can be other than text."""
    text = pl.read_csv(path, infer_schema=False)
    numbers = ("prob_", "score_", "spread_", "percentile_")
    return text.with_columns(
        *(pl.col(name).cast(pl.Float64) for name in text.columns if name.startswith(numbers)),
        *(
            pl.col(name).cast(pl.Int64)
            for name in ("slides", "tiles", "models")
            if name in text.columns
        ),
    )


def _rows(table: pl.DataFrame, slides: Path | None) -> Cohort:
    """Return the slides of the table; those that are not found have no file."""
    found = Cohort((), Path("/")) if slides is None else find_slides([slides])
    by_id = {row.slide_id: row for row in found.rows}
    ids = table.select("slide_id", "patient_id").rows()
    if slides is not None and not by_id.keys() & {slide_id for slide_id, _ in ids}:
        raise UserError(
            f"--slides {slides}: has none of the slides of the table; name what `her2 predict` "
            "was given."
        )
    return Cohort(
        tuple(
            by_id.get(slide_id) or SlideRow(slide_id, "", patient_id or slide_id, {})
            for slide_id, patient_id in ids
        ),
        found.root,
    )


def _with_places(table: pl.DataFrame, cohort: Cohort) -> pl.DataFrame:
    """Add what the manifest says of site and scanner, which the table does not repeat."""
    return table.with_columns(
        pl.Series(name, [row.value(name) for row in cohort.rows], dtype=pl.String)
        for name in ("site", "scanner")
    )


def _drawn(heatmaps: Path | None) -> Path | None:
    if heatmaps is None:
        return None
    from her2.explanation.drawing import SLIDES  # loads matplotlib

    folder = heatmaps / SLIDES
    if not folder.is_dir():
        raise UserError(
            f"--heatmaps {heatmaps}: has no folder {SLIDES}; name what was `her2 predict "
            "--heatmaps`."
        )
    return folder.absolute()


def _stand_in(path: Path, table: pl.DataFrame) -> Config:
    """Return a config in the place of the run's, with the classes and tiles of the predictions.

    Nothing is trained or embedded by it; it gives the page a title and the classes an order.
    """
    classes = [
        name.removeprefix(_PROBABILITY) for name in table.columns if name.startswith(_PROBABILITY)
    ]
    record = _record(path)
    tiles = record.get("tiles", {})
    name = record.get("model", {}).get("name", "a bundle")
    values: dict[str, Any] = {
        "cache": str(path.absolute().parent / DEFAULT).replace("$", "$$"),
        "cohort": {"slides": path.name.replace("$", "$$")},
        "tasks": {"prediction": {"label": "none", "classes": {one: [one] for one in classes}}},
        "encoders": {
            "bundle": {
                "source": "random",
                "model": "timm/resnet10t",
                "mpp": tiles.get("mpp", 0.5),
                "size": tiles.get("px", 224),
            }
        },
        "heads": {"mean": {}},
        "report": {"title": f"Predictions of {name}"},
    }
    try:
        return Config.model_validate(values)
    except ValidationError:
        said = ", ".join(classes) or "none"
        raise UserError(
            f"--bundle-predictions {path}: the columns `prob_...`, or its record, are not "
            f"those of `her2 predict`; the classes are {said}."
        ) from None


def _grid(path: Path, table: pl.DataFrame) -> str:
    """Return the name of the grid that the slides were tiled on."""
    if "tiles" not in _record(path):
        return "grid not known"
    return _stand_in(path, table).encoders["bundle"].grid


def _tile_px(path: Path) -> int | None:
    px = _record(path).get("tiles", {}).get("px")
    return px if isinstance(px, int) and px > 0 else None


def _record(path: Path) -> Mapping[str, Any]:
    """Return the record beside the table, or nothing where there is none."""
    try:
        found = parse_json(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
