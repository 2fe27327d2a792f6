"""`her2 view`: what is known of a slide: its row, its file as it is now, and the run's tables.

A slide whose file was deleted since keeps the facts of the run, and with them its layers.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import polars as pl

from her2.config import Task
from her2.core.errors import SlideError, SlideUnfit, UserError
from her2.core.tables import read_result
from her2.slides.fingerprint import fingerprint
from her2.viewer.cohort.numbers import PROBABILITY
from her2.viewer.run import PREDICTED, NotThereError, ViewedCohort, ViewedRun
from her2.viewer.state import Asked, words_of
from her2.viewer.zoom import OVERLAP_PX, TILE_PX, OpenSlide, level_count

Facts = dict[str, Any]


def facts(one: Asked) -> Facts:
    """Return the facts of a slide, as JSON has them.

    `problem` says why there is nothing to zoom into, and `zoom` is then None; sizes and um/px are
    then those that the run saw, None where it saw none. `size_px`, and `extent_px` where that is
    not known, are in level-0 px: the latter is what tiles or, at worst, nobody knows.
    """
    row, cohort = one.cohort.row(one.slide_id), one.cohort
    found: OpenSlide | None = None
    problem = None
    try:
        found = one.open()
    except (SlideError, NotThereError) as error:
        problem = words_of(error)
    table = cohort.table.filter(pl.col("slide_id") == one.slide_id)
    seen = next((r for r in table.iter_rows(named=True) if r.get("width_px") is not None), {})
    size = found.size_px if found else _pair(seen, "width_px", "height_px")
    return {
        "slide_id": one.slide_id,
        "cohort": cohort.key,
        "cohort_title": cohort.title,
        "patient_id": row.patient_id,
        "site": row.site,
        "scanner": row.scanner,
        "truth": list(truths(one.viewer.run, cohort, one.slide_id)),
        "prediction": _prediction(table) if cohort.key == PREDICTED else None,
        "size_px": size,
        "extent_px": size or _extent(one, table),
        **(_scale(found, row.mpp) if found else _seen_scale(seen)),
        "vendor": found.slide.vendor if found else seen.get("vendor"),
        "objective": found.slide.objective if found else None,
        "problem": problem,
        "zoom": None
        if found is None
        else {
            "tile_px": TILE_PX,
            "overlap_px": OVERLAP_PX,
            "levels": level_count(found.size_px),
            "version": found.version,
        },
        "grids": [
            {name: r.get(name) for name in ("grid", "status", "tiles")}
            | {"reason": r.get("reason") and words_of(r["reason"])}
            for r in table.iter_rows(named=True)
        ],
        "tissue_mm2": _finite(seen.get("tissue_mm2")),
        "models": list(one.viewer.run.models),
    }


def truths(run: ViewedRun, cohort: ViewedCohort, slide_id: str) -> Iterator[Mapping[str, Any]]:
    """Yield what the cohort's labels say of a slide: task, label column, value and class.

    Slides that were predicted with a bundle have no labels.
    """
    table = cohort.table.filter(pl.col("slide_id") == slide_id)
    for name, task in _tasks(run, cohort):
        column = f"label_{task.label}"
        value = table[column][0] if column in table.columns and table.height else None
        index = None if value is None else task.class_index(value)
        yield {
            "task": name,
            "label": task.label,
            "value": value,
            "class": None if index is None else task.class_names[index],
        }


def _prediction(table: pl.DataFrame) -> Facts | None:
    """Return what `her2 predict` says of a slide; None of one that it could not predict."""
    row = table.row(0, named=True)
    if row["predicted"] is None:
        return None
    return {
        "class": row["predicted"],
        "probabilities": {
            name.removeprefix(PROBABILITY): value
            for name, value in row.items()
            if name.startswith(PROBABILITY)
        },
        "cautions": row["cautions"],
    }


def is_of_run(one: Asked) -> bool | None:
    """Return whether a slide's file is the one that the run read; None if that is not known.

    Raises:
        NotThereError: there is no file.
        SlideError: it cannot be read.
    """
    table = one.cohort.table.filter(pl.col("slide_id") == one.slide_id)
    known = table["fingerprint"].drop_nulls() if "fingerprint" in table.columns else pl.Series()
    return fingerprint(one.file) == known[0] if len(known) else None


def _tasks(run: ViewedRun, cohort: ViewedCohort) -> Iterator[tuple[str, Task]]:
    config = run.config
    if cohort.key == PREDICTED:
        return
    if cohort.external in config.validation:
        for name, (of, section) in config.truths(str(cohort.external)).items():
            yield name, section.truth(config.tasks[of])
    else:
        yield from config.tasks.items()


def _scale(opened: OpenSlide, manifest_mpp: float | None) -> Facts:
    """Return the um/px that count, their source, and those of the manifest and the file."""
    try:
        scale, problem = opened.slide.scale(), None
    except SlideUnfit as error:
        scale, problem = None, words_of(error)
    file_mpp = opened.slide.file_mpp
    readable = file_mpp is not None and all(map(math.isfinite, file_mpp))
    return {
        "mpp": scale and (scale.mpp_x, scale.mpp_y),
        "mpp_source": scale and scale.source,
        "mpp_problem": problem,
        "manifest_mpp": manifest_mpp,
        "file_mpp": file_mpp if readable else None,
    }


def _seen_scale(seen: Mapping[str, Any]) -> Facts:
    """Return the same from what the run saw."""
    mpp, source = _pair(seen, "mpp_x", "mpp_y"), seen.get("mpp_source")
    manifest = mpp[0] if mpp and source == "manifest" else None
    file_mpp = mpp if source == "metadata" else _pair(seen, "file_mpp_x", "file_mpp_y")
    return {
        "mpp": mpp,
        "mpp_source": source,
        "mpp_problem": None if mpp else "the run did not see its um/px",
        "manifest_mpp": manifest,
        "file_mpp": file_mpp,
    }


def _pair(seen: Mapping[str, Any], x: str, y: str) -> tuple[Any, Any] | None:
    both = _finite(seen.get(x)), _finite(seen.get(y))
    return None if None in both else both


def _finite(value: Any) -> Any:
    """Return a number of a table, None where there is none; JSON has no word for others."""
    return value if value is not None and math.isfinite(value) else None


def _extent(one: Asked, table: pl.DataFrame) -> tuple[int, int]:
    """Return an extent that holds a slide's tiles, where neither file nor tables have its size."""
    width, height = 1, 1
    for grid in table["grid"] if "grid" in table.columns else ():
        path = one.cohort.folder / "tiles" / str(grid) / f"{one.slide_id}.parquet"
        with suppress(UserError):  # absent or damaged, which the layers say
            tiles = read_result(path, columns=["x", "y"])
            if tiles.height:
                beyond = [int(tiles[axis].max() + _step(tiles[axis])) for axis in ("x", "y")]  # type: ignore[operator]
                width, height = max(width, beyond[0]), max(height, beyond[1])
    return (width, height) if (width, height) != (1, 1) else (TILE_PX, TILE_PX)


def _step(values: pl.Series) -> int:
    """Return the smallest distance between two tiles on an axis."""
    steps = values.unique().sort().diff().drop_nulls()
    return int(steps.min()) if len(steps) else TILE_PX  # type: ignore[arg-type]
