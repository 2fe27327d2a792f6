"""After a run: its tables by name, for scripts and notebooks."""

import difflib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import polars as pl

from her2.config import Config
from her2.config.jobs import ReportSpec
from her2.core.errors import UserError
from her2.core.stamps import FOLDER as STAMPS
from her2.core.tables import read_result
from her2.frozen.bundle.asked import read_spec
from her2.pipeline import record, status
from her2.report import results as finished
from her2.report.reading import ATTENTION

REPORT_STAMP = "build_report"
_BY_MODEL = {
    **dict.fromkeys(finished.TABLES, "evaluation"),
    **dict.fromkeys(finished.CONTROLS, "controls"),
    **dict.fromkeys(ATTENTION, "attention"),
}
"""Tables of a model -> the folder of their stage."""
_OF_ALL = {
    "cohort": "cohort/slides.parquet",
    **{
        name: f"evaluation/{name}.parquet"
        for name in ("comparison", "statement", "selection", "picks")
    },
}
"""Tables of the whole run -> their files."""
_NAMES = ["task", "encoder", "head"]


class Results:
    """The results of a run as tables (polars data frames), read when they are asked for.

    Every table that `names` lists is also an attribute. Tables of models have the columns `task`,
    `encoder` and `head` in front, and a row's meaning is that of docs/statistics.md. Those of the
    report are made by the functions that write `report/tables/*.csv`, and need a finished run.

    Args:
        folder: the results folder, `results` in most configs.

    Raises:
        UserError: the folder is none of a run; a table is not there yet, and what is missing.

    >>> import her2
    >>> run = her2.Results("results")
    >>> run
    <Results results: finished, models score/tiny/abmil>
    >>> run.headline.columns[:4]
    ['task', 'encoder', 'domain', 'head']
    >>> run.predictions.filter(role="test").height
    12
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / STAMPS).is_dir():
            raise UserError(
                f"{folder}: is no results folder (it has no folder {STAMPS}); give the one that "
                "the config's `results` names."
            )

    def __repr__(self) -> str:
        """Return what it is: whether it is finished, or what is missing, and its models."""
        state = "; ".join(self.missing) or "finished"
        models = ", ".join("/".join(names) for names in self.models) or "none yet"
        return f"<Results {self.folder}: {state}, models {models}>"

    @cached_property
    def models(self) -> tuple[tuple[str, str, str], ...]:
        """Return the evaluated models as (task, encoder, head), sorted."""
        found = self.folder.glob("evaluation/*/*/*/predictions.parquet")
        named = sorted(path.parent.relative_to(self.folder / "evaluation").parts for path in found)
        return tuple((task, encoder, head) for task, encoder, head in named)

    @property
    def config(self) -> Config:
        """Return the config that the report was made with.

        Raises:
            UserError: the run is not finished.
        """
        return self._spec.config

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Return what an unfinished run lacks, in words; empty for a finished one."""
        if self._stamp.is_file():
            return ()
        said = ["not finished: there is no report"]
        try:
            run = record.read_run(self.folder)
            stages = status.RunProgress(run).close()
        except UserError as error:
            return (*said, str(error))
        for stage in stages:
            counts = {name: stage.count(name) for name in ("failed", "running", "waiting")}
            if words := [f"{number} {name}" for name, number in counts.items() if number]:
                said.append(f"{stage.rule}: {', '.join(words)}")
        return tuple(said)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the names of all tables that this run has so far, sorted."""
        found = {name for name in _BY_MODEL if self._files(name)}
        found |= {name for name, path in _OF_ALL.items() if (self.folder / path).is_file()}
        if any(self.folder.glob("folds/*.parquet")):
            found.add("folds")
        if self._stamp.is_file():
            found |= {path.stem for path in self.folder.glob("report/tables/*.csv")}
        return tuple(sorted(found))

    def table(self, name: str) -> pl.DataFrame:
        """Return a table by name.

        Raises:
            UserError: there is none of this name, or not yet; or it is damaged.
        """
        if name in _BY_MODEL and (files := self._files(name)):
            parts = [(path.parts[-4:-1], read_result(path)) for path in files]
            return pl.concat([_named(_NAMES, names, part) for names, part in parts],
                             how="diagonal")  # fmt: skip
        if name in _OF_ALL and (path := self.folder / _OF_ALL[name]).is_file():
            return read_result(path)
        if name == "folds" and (files := sorted(self.folder.glob("folds/*.parquet"))):
            parts_of = [_named(["task"], [path.stem], read_result(path)) for path in files]
            return pl.concat(parts_of, how="diagonal")
        if name in self.names:
            from her2.report.build import table_of  # imports the sections of the page

            found = table_of(self._run, name)
            if found is not None:
                return found
        raise UserError(self._absent(name))

    @property
    def headline(self) -> pl.DataFrame:
        """Return the AUCs of each model and class with intervals, as on the report's first page."""
        return self.table("headline")

    @property
    def predictions(self) -> pl.DataFrame:
        """Return the predictions of each model for the slides that it was not trained on.

        One row per slide and model; `role` is test, tune, or predict for slides without a label.
        """
        return self.table("predictions")

    @property
    def patients(self) -> pl.DataFrame:
        """Return each patient's out-of-fold probabilities, averaged over the rounds."""
        return self.table("patients")

    @property
    def slides(self) -> pl.DataFrame:
        """Return each slide's out-of-fold probabilities, averaged over the rounds."""
        return self.table("slides")

    @property
    def metrics(self) -> pl.DataFrame:
        """Return every figure of each model with its interval, at patient and at slide level."""
        return self.table("metrics")

    @property
    def calibration(self) -> pl.DataFrame:
        """Return the calibration of each model, before and after temperature scaling."""
        return self.table("calibration")

    @property
    def comparison(self) -> pl.DataFrame:
        """Return the differences between encoders, and between heads, with p values."""
        return self.table("comparison")

    @property
    def cohort(self) -> pl.DataFrame:
        """Return the slides with what tiling found of each, one row per slide and grid."""
        return self.table("cohort")

    @property
    def folds(self) -> pl.DataFrame:
        """Return the role of each slide in each repeat and fold of each task."""
        return self.table("folds")

    def __getattr__(self, name: str) -> pl.DataFrame:
        if name.startswith("_") or name not in self.names:
            words = f"has no attribute {name!r}"
            raise AttributeError(words if name.startswith("_") else self._absent(name))
        return self.table(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.names})

    @property
    def _stamp(self) -> Path:
        return self.folder / STAMPS / f"{REPORT_STAMP}.json"

    @cached_property
    def _spec(self) -> ReportSpec:
        if not self._stamp.is_file():
            raise UserError(
                f"{self.folder}: is {'; '.join(self.missing)}. Run snakemake to its end."
            )
        return read_spec(ReportSpec, self._stamp)

    @cached_property
    def _run(self) -> finished.Results:
        return finished.read_results(self._spec, self.folder)

    def _files(self, name: str) -> list[Path]:
        """Return the files of a table of models, of each model that has it."""
        return sorted(self.folder.glob(f"{_BY_MODEL[name]}/*/*/*/{name}.parquet"))

    def _absent(self, name: str) -> str:
        """Return why there is no table of a name, and what there is."""
        if self.missing:
            why = f"the run is {'; '.join(self.missing)}"
        else:
            near = difflib.get_close_matches(name, self.names, 1)
            why = f"do you mean {near[0]!r}" if near else "a run with this config has none"
        return (
            f"{self.folder}: has no table {name!r}: {why}. The tables are "
            f"{', '.join(self.names) or '(none)'}."
        )


def _named(columns: list[str], values: Iterable[str], table: pl.DataFrame) -> pl.DataFrame:
    """Return a table with columns of one value each in front."""
    front = [pl.lit(value).alias(name) for name, value in zip(columns, values, strict=True)]
    return table.select(*front, pl.all().exclude(columns))
