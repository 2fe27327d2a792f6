"""After a run: what its jobs of the heatmaps found, for commands that look at finished results."""

from collections.abc import Callable, Iterable
from pathlib import Path

from her2.config.external_jobs import ExternalHeatmapSpec
from her2.config.jobs import HeatmapSpec
from her2.config.names import cohort_folder, split_protocol
from her2.core.errors import UserError
from her2.core.stamps import FOLDER as STAMPS
from her2.explanation.external_slides import External, find_external
from her2.explanation.held_out import HeldOut, find_held_out
from her2.explanation.places import RunPlaces
from her2.frozen.bundle.asked import Wanted, read_spec
from her2.storage.cache import Cache
from her2.storage.fold_files import check_fold
from her2.storage.products import FindProduct, find_product


def heatmap_spec(wanted: Wanted) -> HeatmapSpec:
    """Return what the heatmaps of a model were asked for.

    Raises:
        UserError: there are none of this model, or they are of another version.
    """
    if split_protocol(wanted.head)[1] == "published":
        raise UserError(
            f"{wanted.head}: attention is not explained under the published protocol, whose folds "
            "divide slides and not patients."
        )
    stamp = wanted.results.joinpath(STAMPS, "draw_heatmaps", *wanted.names)
    return read_spec(HeatmapSpec, stamp.with_name(f"{stamp.name}.json"))


def held_out_of_run(
    spec: HeatmapSpec,
    wanted: Wanted,
    cache: Cache,
    *,
    repeat: int = 0,
    only: str | None = None,
    check: Callable[[Path, Iterable[str]], None] = check_fold,
    find: FindProduct = find_product,
) -> HeldOut:
    """Return the held-out slides of a model; arguments and errors are those of `find_held_out`."""
    return find_held_out(
        spec,
        cache,
        folds=folds_table(wanted),
        models=wanted.folder("models"),
        features=wanted.results / "features" / wanted.encoder,
        repeat=repeat,
        only=only,
        check=check,
        find=find,
    )


def folds_table(wanted: Wanted) -> Path:
    """Return the path of the folds that a model was trained on."""
    return wanted.results / "folds" / f"{wanted.task}.parquet"


def external_spec(wanted: Wanted, where: RunPlaces, name: str) -> ExternalHeatmapSpec:
    """Return what the heatmaps of a model on an external cohort were asked for.

    Raises:
        UserError: there is no such cohort, it has no truth of the task, or there are no heatmaps.
    """
    if name not in where.config.validation:
        known = ", ".join(where.config.validation) or "none"
        raise UserError(f"--cohort {name}: the external cohorts of this run are {known}.")
    stamps = wanted.results / STAMPS / cohort_folder(name) / "draw_external_heatmaps"
    truths = where.config.truths(name)
    truth = next((one for one, (of, _) in truths.items() if of == wanted.task), None)
    if truth is None:
        raise UserError(f"--cohort {name}: the cohort has no truth of the task {wanted.task}.")
    return read_spec(ExternalHeatmapSpec, stamps / truth / wanted.encoder / f"{wanted.head}.json")


def external_of_run(
    spec: ExternalHeatmapSpec,
    wanted: Wanted,
    cache: Cache,
    *,
    only: str | None = None,
    find: FindProduct = find_product,
) -> External:
    """Return the external slides of a model; arguments and errors are those of `find_external`."""
    part = wanted.results / cohort_folder(spec.cohort)
    return find_external(
        spec,
        cache,
        predictions=external_predictions(spec, wanted),
        table=part / "cohort" / "slides.parquet",
        features=part / "features" / wanted.encoder,
        only=only,
        find=find,
    )


def external_predictions(spec: ExternalHeatmapSpec, wanted: Wanted) -> Path:
    """Return the folder of a model's predictions of an external cohort."""
    return wanted.results.joinpath(cohort_folder(spec.cohort), "predictions", *wanted.names)
