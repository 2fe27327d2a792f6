"""Raw slides to scores: from slide files to a table, in one command."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

import her2
from her2.cohort.manifest import Cohort
from her2.core.errors import UserError, first_line, problem_list
from her2.core.files import atomic_path, file_digest, parse_json, write_json
from her2.core.reading import write_problem
from her2.core.scratch import swept_folder
from her2.core.sharing import make_folder
from her2.core.tables import write_csv
from her2.frozen.model import FrozenPrediction
from her2.frozen.stage import predict_bag
from her2.mil.apply import mismatches
from her2.mil.bags import Bag
from her2.mil.room import check_room
from her2.prediction.herohe import chosen_grouping, herohe_table
from her2.prediction.predictor import Predictor
from her2.prediction.progress import Progress
from her2.prediction.results import SLIDE, SlideResult, results_table
from her2.prediction.slides import Prepared, prepare_slides
from her2.slides.staging import scratch_folder
from her2.storage.cache import Cache
from her2.storage.features import allow_open_files, open_store

log = logging.getLogger(__name__)

Format = Literal["table", "herohe"]
SLIDE_TRAINED_ON = (
    "Its content was in the training data, so the prediction is no test of the model."
)
PATIENT_TRAINED_ON = (
    "A patient of its id was in the training data; unless that is somebody else, the prediction is "
    "no test of the model."
)
PRETRAINED_ON = (
    "The encoder was pre-trained on it or on a patient of its id, so the prediction is no test of "
    "the model."
)
"""Cautions about the training data."""
FOLDER = ".her2-predict-"
"""Prefix of the folder in the cache for what the stages write beside their products."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a call asks for, beside model and slides.

    Attributes:
        output: the table, .csv or .parquet (`herohe`: .csv); the record is `{stem}.json` beside it.
        heatmaps: folder for pictures, or None for none.
        threads: number of CPU threads.
        scratch: folder on a local disk to which slides are copied before they are embedded.
        form: the form of the table.
        grouping: which one `herohe` is about, where the model has several.
    """

    output: Path
    heatmaps: Path | None = None
    threads: int = 1
    scratch: str | None = None
    form: Format = "table"
    grouping: str | None = None

    @property
    def record(self) -> Path:
        """Return the path of the record that lies beside the table."""
        return self.output.with_suffix(".json")


@dataclass(frozen=True, slots=True)
class Predicted:
    """A slide with what is said of it; `prediction` is None where it could not be used."""

    prepared: Prepared
    result: SlideResult
    prediction: FrozenPrediction | None = None


def check_options(options: Options, cache: Path, sources: Sequence[Path] = ()) -> None:
    """Check that everything can be written, and over nothing else, before hours of work.

    `sources` are the slides that are given.

    Raises:
        UserError: a file or folder cannot be written, or the table's suffix is of another form;
            all of it.
    """
    suffixes = (".csv",) if options.form == "herohe" else (".csv", ".parquet")
    problems = []
    if options.output.suffix not in suffixes:
        problems.append(f"--out {options.output}: the file must be a {' or '.join(suffixes)}")
    if options.output.is_dir():
        problems.append(f"--out {options.output}: is a folder; name a file in it")
    folders = {"--out": options.output.parent, "--heatmaps": options.heatmaps, "--cache": cache}
    for option, folder in folders.items():
        if folder is not None and (problem := write_problem(folder)):
            problems.append(f"{option} {folder}: {problem}")
    written = {options.output.absolute(), options.record.absolute()}
    problems += [
        f"{source}: would be replaced by a result; name another --out"
        for source in sources
        if source.absolute() in written
    ]
    if options.record.exists() and not _is_record(options.record):
        problems.append(
            f"{options.record}: exists, and is no record of an earlier call; name another --out"
        )
    if options.scratch is not None:
        try:
            scratch_folder(options.scratch)
        except UserError as error:
            problems.append(f"--scratch: {str(error).removeprefix('embedding.scratch: ')}")
    if problems:
        raise problem_list("nothing was predicted; correct first", problems)


def predict_raw_slides(
    predictor: Predictor, cohort: Cohort, cache: Cache, options: Options, progress: Progress
) -> pl.DataFrame:
    """Tile, embed and predict slides, and write the table, its record and the pictures.

    Args:
        predictor: the model with the stages before it.
        cohort: the slides.
        cache: holds, and receives, tile tables and features.
        options: where results go.
        progress: says how far it is.

    Returns:
        The table of `her2.prediction.results`, whatever form was written.

    Raises:
        UserError: the encoder is another one, no grouping fits `herohe`, a result cannot be
            written, or no slide could be predicted (after the table was written).
    """
    predictor.check_encoder()
    grouping = chosen_grouping(predictor, options.grouping) if options.form == "herohe" else None
    make_folder(cache.root)
    with swept_folder(cache.root, FOLDER) as folder:
        prepared = prepare_slides(
            predictor, cohort, cache, folder, progress,
            threads=options.threads, scratch=options.scratch,
        )  # fmt: skip
    allow_open_files(len(prepared))
    known = _trained_on(predictor, prepared)
    found = [_predict(predictor, one, cache, known.get(one.row.slide_id, ())) for one in prepared]
    table = results_table(predictor, [one.result for one in found])
    write(table if grouping is None else herohe_table(table, grouping), options.output)
    pictures: list[dict[str, object]] = []
    if options.heatmaps is not None:
        from her2.prediction.pictures import draw_pictures  # loads matplotlib

        drawable = [
            (one.prepared, one.prediction, SLIDE_TRAINED_ON in one.result.cautions)
            for one in found
            if one.prediction is not None
        ]
        pictures = draw_pictures(predictor, cohort, cache, drawable, options.heatmaps, progress)
    write_json(options.record, _record(predictor, options, table, pictures))
    used = [one for one in found if one.prediction is not None]
    if not used:
        raise problem_list(
            f"no slide could be predicted; {options.output} has the reasons",
            [f"{one.result.slide_id}: {one.result.reason}" for one in found],
            limit=10,
        )
    _say_what_was_done(found, options, progress)
    return table


def _is_record(path: Path) -> bool:
    try:
        return {"her2", "table", "model"} <= parse_json(path.read_bytes()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def write(table: pl.DataFrame, output: Path) -> None:
    """Write a table as its suffix says."""
    if output.suffix == ".csv":
        write_csv(table, output)
        return
    with atomic_path(output) as temporary:
        table.write_parquet(temporary)


def _trained_on(predictor: Predictor, slides: Sequence[Prepared]) -> dict[str, tuple[str, ...]]:
    """Return the slides that are in the training data in any way, with cautions."""
    if predictor.trained_on is None:
        return {}
    facts = {one.row.slide_id: one.tiled.facts for one in slides}
    contents = {name: own.fingerprint for name, own in facts.items() if own is not None}
    seen = predictor.trained_on({one.row.patient_id for one in slides}, contents.values())
    found = {}
    for row in (one.row for one in slides):
        content = contents.get(row.slide_id)
        said = {
            SLIDE_TRAINED_ON: content in seen.slides,
            PATIENT_TRAINED_ON: row.patient_id in seen.patients and content not in seen.slides,
            PRETRAINED_ON: bool({content, row.patient_id} & set(seen.pretraining)),
        }
        found[row.slide_id] = tuple(sentence for sentence, holds in said.items() if holds)
    return found


def _predict(
    predictor: Predictor, one: Prepared, cache: Cache, cautions: tuple[str, ...]
) -> Predicted:
    """Predict a slide; one that cannot be predicted has the reason and stops no other."""
    row, entry = one.row, one.embedded

    def left_out(status: str, reason: str | None) -> Predicted:
        result = SlideResult(row.slide_id, row.patient_id, status, reason, cautions=cautions)
        return Predicted(one, result)

    if entry.status != "ok" or entry.key is None:
        return left_out(entry.status, entry.reason)
    store = open_store(cache.path("features", entry.key), entry.key)
    first = predictor.model.first
    if problems := mismatches(store, first):
        return left_out("failed", "; ".join(problems))
    bag = Bag(row.slide_id, row.patient_id, entry.key, store, None)
    try:
        check_room([bag], first.head, predictor.device)
        prediction = predict_bag(predictor.model, bag)
    except UserError as error:
        return left_out("failed", first_line(error))
    judged = predictor.judge(row, one.tiled, store)
    result = SlideResult(
        row.slide_id,
        row.patient_id,
        "ok",
        tiles=len(bag),
        each=prediction.each,
        cautions=(*cautions, *judged.sentences),
        percentiles=judged.percentiles,
    )
    log.info("%s: predicted %s", row.slide_id, _top(predictor, prediction))
    return Predicted(one, result, prediction)


def _top(predictor: Predictor, prediction: FrozenPrediction) -> str:
    return predictor.model.task.class_names[int(prediction.probabilities.argmax())]


def _record(
    predictor: Predictor,
    options: Options,
    table: pl.DataFrame,
    pictures: Sequence[dict[str, object]],
) -> dict[str, Any]:
    """Return what made the table."""
    slides = table.filter(level=SLIDE)
    return {
        "her2": her2.__version__,
        "table": {
            "name": options.output.name,
            "form": options.form,
            "sha256": file_digest(options.output),
        },
        "model": {
            "name": predictor.model.name,
            "models": len(predictor.model.folds),
            "encoder": predictor.model.first.card["encoder_digest"],
            **predictor.made_of,
        },
        "tiles": {"mpp": predictor.mpp, "px": predictor.size},
        "thresholds": [
            {
                "level": one.level,
                "grouping": one.grouping,
                f"{one.fixed} in development": one.asked,
                "threshold": one.value,
            }
            for one in predictor.model.thresholds
        ],
        "slides": {
            status: slides.filter(status=status).height for status in ("ok", "excluded", "failed")
        },
        "with_cautions": slides.filter(pl.col("cautions") != "").height,
        **({"pictures": list(pictures)} if pictures else {}),
    }


def _say_what_was_done(found: Sequence[Predicted], options: Options, progress: Progress) -> None:
    lost = [one.result for one in found if one.prediction is None]
    cautioned = sum(bool(one.result.cautions) for one in found)
    words = f"slides predicted: {len(found) - len(lost):,} of {len(found):,}"
    if cautioned:
        words += f"; with cautions: {cautioned:,}"
    progress.say(f"{words}; table: {options.output}")
    for one in lost:
        progress.say(f"{one.slide_id}: not predicted: {one.reason}")
