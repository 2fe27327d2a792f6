"""The `her2` command: `her2 predict`, of slides with a bundle, or of features with folds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from her2.cli.shared import filled_in_cache
from her2.core.errors import UserError, problem_list
from her2.storage.cache import DEFAULT


def predict(
    given: Annotated[
        list[Path],
        typer.Argument(
            metavar="SLIDES...",
            help="with --bundle: slide files, folders of slides, or a manifest (.csv, .parquet); "
            "with --features: folders of trained folds (of one task), to be averaged",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="the table, .csv or .parquet; .json beside it")
    ],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="the model, a folder or .zip of `her2 bundle`")
    ] = None,
    heatmaps: Annotated[
        Path | None,
        typer.Option(help="folder for pictures of attention, as PNG and as GeoJSON for QuPath"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: all that there are")
    ] = None,
    scratch: Annotated[
        str | None,
        typer.Option(help="folder on a local disk to which slides are copied before embedding"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            envvar="HER2_CACHE",
            callback=filled_in_cache,
            help=f"the content-addressed cache; default: {DEFAULT} beside --out",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="where relative paths of a manifest start")
    ] = None,
    form: Annotated[
        Literal["table", "herohe"],
        typer.Option("--format", help="herohe: the CSV of the HEROHE challenge"),
    ] = "table",
    grouping: Annotated[
        str | None, typer.Option(help="which side is HER2-positive, for --format herohe")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="the encoder's folder, for a bundle that does not have its weights"),
    ] = None,
    segmenter: Annotated[
        Path | None,
        typer.Option(
            help="folder or weights file of the bundle's tissue segmenter, if it has one; "
            "default: fetched from where it is published"
        ),
    ] = None,
    artefact_segmenter: Annotated[
        Path | None, typer.Option(help="the same of the bundle's artefact segmenter")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="instead of slides: a folder of {slide_id}.zarr.zip"),
    ] = None,
    priors: Annotated[
        Path | None,
        typer.Option(
            help="with --features: the models' priors.parquet; default: that of their results"
        ),
    ] = None,
) -> None:
    """Predict slides with a bundle, or features of another cohort with trained folds."""
    from her2.core.hardware import allowed_cpus

    threads = threads or allowed_cpus()
    of_slides = {"--heatmaps": heatmaps, "--scratch": scratch, "--root": root,
                 "--grouping": grouping, "--encoder": encoder,
                 "--segmenter": segmenter, "--artefact-segmenter": artefact_segmenter,
                 "--format": None if form == "table" else form}  # fmt: skip
    _check_way(bundle, features, of_slides, {"--priors": priors})
    if bundle is None:
        assert features is not None
        from her2.frozen.predict import predict_slides

        predict_slides(given, features, out, threads=threads, priors=priors)
        return
    from her2.prediction.options import Options, check_options, check_pictures

    options = Options(out, heatmaps, threads, scratch, form, grouping)
    place = cache or out.parent / DEFAULT
    check_options(options, place, given)

    from her2.prediction.inputs import find_slides
    from her2.prediction.of_bundle import open_predictor
    from her2.prediction.predict import predict_raw_slides
    from her2.prediction.progress import Progress
    from her2.storage.cache import Cache

    cohort = find_slides(given, root, without=[place, *([heatmaps] if heatmaps else [])])
    check_pictures(options, cohort)
    progress = Progress()
    for remark in (*cohort.remarks, *cohort.cautions):
        progress.say(remark)
    segmenters = {"segmenter": segmenter, "artefact_segmenter": artefact_segmenter}
    predictor = open_predictor(
        bundle, encoder, Cache(place), threads=threads,
        segmenters={key: path for key, path in segmenters.items() if path is not None},
    )  # fmt: skip
    progress.say(f"slides: {len(cohort.rows):,}; model: {predictor.model.name}; cache: {place}")
    predict_raw_slides(predictor, cohort, Cache(place), options, progress)


def _check_way(
    bundle: Path | None,
    features: Path | None,
    of_slides: Mapping[str, object],
    of_features: Mapping[str, object],
) -> None:
    """Check that the options are those of one of the two ways to predict.

    Raises:
        UserError: neither or both are asked for, or options of the other one; all of them.
    """
    if (bundle is None) == (features is None):
        raise UserError(
            "predict slides with --bundle BUNDLE, or features that exist with --features FOLDER "
            "and folders of trained folds"
        )
    way, other = ("--features", of_slides) if bundle is None else ("--bundle", of_features)
    if wrong := [option for option, value in other.items() if value is not None]:
        raise problem_list(f"with {way} these options have no meaning", wrong)
