"""Raw slides to scores: from slide files to a table, in one command."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from her2.cohort.apart import barcode
from her2.cohort.manifest import Cohort, SlideRow
from her2.core.errors import UserError, first_line, problem_list
from her2.core.files import write_json
from her2.core.scratch import swept_folder
from her2.core.sharing import make_folder
from her2.frozen.model import FrozenPrediction
from her2.frozen.stage import check_rooms, predict_bag
from her2.mil.apply import mismatches
from her2.mil.bags import Bag
from her2.prediction.herohe import chosen_grouping, herohe_table
from her2.prediction.options import Options, write_predictions
from her2.prediction.predictor import Predictor
from her2.prediction.progress import Progress
from her2.prediction.record import record_of
from her2.prediction.results import SlideResult, results_table
from her2.prediction.slides import Prepared, prepare_slides
from her2.storage.cache import Cache
from her2.storage.features import allow_open_files, open_store

log = logging.getLogger(__name__)

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
class Predicted:
    """A slide with what is said of it.

    `prediction` is None where it could not be used, and `precision` is that of its features.
    """

    prepared: Prepared
    result: SlideResult
    prediction: FrozenPrediction | None = None
    precision: str | None = None


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
    write_predictions(table if grouping is None else herohe_table(table, grouping), options.output)
    pictures: list[dict[str, object]] = []
    if options.heatmaps is not None:
        from her2.prediction.pictures import draw_pictures  # loads matplotlib

        drawable = [
            (one.prepared, one.prediction, SLIDE_TRAINED_ON in one.result.cautions)
            for one in found
            if one.prediction is not None
        ]
        pictures = draw_pictures(predictor, cohort, cache, drawable, options.heatmaps, progress)
    precisions = sorted({one.precision for one in found if one.precision is not None})
    write_json(options.record, record_of(predictor, options, table, precisions, pictures))
    used = [one for one in found if one.prediction is not None]
    if not used:
        raise problem_list(
            f"no slide could be predicted; {options.output} has the reasons",
            [f"{one.result.slide_id}: {one.result.reason}" for one in found],
            limit=10,
        )
    if predictor.ran_in and (other := sorted({*precisions} - {*predictor.ran_in})):
        progress.say(
            f"features were computed in {', '.join(other)}, those of development in "
            f"{', '.join(predictor.ran_in)}: probabilities differ by the rounding"
        )
    _say_what_was_done(found, options, progress)
    return table


def _trained_on(predictor: Predictor, slides: Sequence[Prepared]) -> dict[str, tuple[str, ...]]:
    """Return the slides that are in the training data in any way, with cautions."""
    if predictor.trained_on is None:
        return {}
    facts = {one.row.slide_id: one.tiled.facts for one in slides}
    contents = {name: own.fingerprint for name, own in facts.items() if own is not None}
    people = {one.row.slide_id: _ids_of_patient(one.row) for one in slides}
    seen = predictor.trained_on(set().union(*people.values()), contents.values())
    found = {}
    for row in (one.row for one in slides):
        content, ids = contents.get(row.slide_id), people[row.slide_id]
        said = {
            SLIDE_TRAINED_ON: content in seen.slides,
            PATIENT_TRAINED_ON: bool(ids & {*seen.patients}) and content not in seen.slides,
            PRETRAINED_ON: bool({content, *ids} & {*seen.pretraining}),
        }
        found[row.slide_id] = tuple(sentence for sentence, holds in said.items() if holds)
    return found


def _ids_of_patient(row: SlideRow) -> set[str]:
    """Return the patient's id in the manifest, and in the slide's name if it is a barcode."""
    return {row.patient_id, *filter(None, [barcode(row.slide_id)])}


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
    if problems := mismatches(store, predictor.model.first):
        return left_out("failed", "; ".join(problems))
    bag = Bag(row.slide_id, row.patient_id, entry.key, store, None)
    try:
        check_rooms(predictor.model, [bag])
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
    return Predicted(one, result, prediction, store.attributes.get("precision"))


def _top(predictor: Predictor, prediction: FrozenPrediction) -> str:
    return predictor.model.task.class_names[int(prediction.probabilities.argmax())]


def _say_what_was_done(found: Sequence[Predicted], options: Options, progress: Progress) -> None:
    lost = [one.result for one in found if one.prediction is None]
    cautioned = sum(bool(one.result.cautions) for one in found)
    words = f"slides predicted: {len(found) - len(lost):,} of {len(found):,}"
    if cautioned:
        words += f"; with cautions: {cautioned:,}"
    progress.say(f"{words}; table: {options.output}")
    for one in lost:
        progress.say(f"{one.slide_id}: not predicted: {one.reason}")
