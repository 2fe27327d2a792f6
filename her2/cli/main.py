"""The `her2` command: every stage, and a few questions, as thin calls of the package.

Each command imports what it needs when it runs: `her2 --help` loads neither torch nor timm.
"""

import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from her2 import __version__
from her2.cli.admin import cache_app, cohort_app, config_app, synthetic_app
from her2.cli.inspect import explain_slide, show_status
from her2.cli.options import (
    CacheOption,
    FeaturesOption,
    FoldsOption,
    ModelsOption,
    OutOption,
    RootOption,
    SlidesOption,
    SpecOption,
    ThreadsOption,
    TilesOption,
)
from her2.config import jobs
from her2.core.errors import UserError
from her2.core.hardware import bound_busy_waiting

if TYPE_CHECKING:
    from her2.cohort.manifest import Cohort

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cohort_app, name="cohort")
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")
app.add_typer(synthetic_app, name="synthetic")
app.command("status")(show_status)
app.command("explain")(explain_slide)


def main() -> None:
    """Run the command line; a user's mistake prints its message and exits with 1."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    bound_busy_waiting()
    try:
        app()
    except UserError as error:
        print(f"her2: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        notes = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        print(f"her2: {notes}{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """HER2 scores from H&E slides: tile, embed once, train, evaluate, report."""
    if show:
        print(__version__)
        raise typer.Exit


@app.command()
def tile(
    spec: SpecOption,
    slides: SlidesOption,
    cache: CacheOption,
    out: OutOption,
    root: RootOption = None,
    tissue_masks: Annotated[
        Path | None, typer.Option(help="folder of {slide_id}.png or .tif: tissue, not detected")
    ] = None,
    threads: ThreadsOption = 1,
) -> None:
    """Stage 1: find the tiles of a bucket of slides."""
    from her2.storage.cache import Cache
    from her2.tiling.stage import tile_bucket

    job = jobs.load(jobs.TileSpec, spec)
    tile_bucket(
        job,
        _cohort(slides, root),
        Cache(cache),
        out,
        tissue_masks=tissue_masks,
        threads=threads,
    )


@app.command()
def audit(
    spec: SpecOption,
    slides: SlidesOption,
    tiles: TilesOption,
    out: OutOption,
    root: RootOption = None,
) -> None:
    """After tile: stop on duplicates and on too many slides that cannot be used."""
    from her2.cohort.audit import audit_cohort

    job = jobs.load(jobs.AuditSpec, spec)
    audit_cohort(job, _cohort(slides, root, job.labels), tiles, out)


@app.command()
def tabulate(
    spec: SpecOption,
    slides: SlidesOption,
    tiles: TilesOption,
    out: OutOption,
    root: RootOption = None,
) -> None:
    """After tile: the table of the whole cohort."""
    from her2.cohort.audit import tabulate_cohort

    job = jobs.load(jobs.CohortSpec, spec)
    tabulate_cohort(job, _cohort(slides, root, job.labels), tiles, out)


@app.command()
def encoder(spec: SpecOption, out: OutOption) -> None:
    """Stage 1: put an encoder's weights and card into a folder."""
    from her2.encoders.stage import materialise

    job = jobs.load(jobs.EncoderSpec, spec)
    materialise(job.encoder, job.seed, out)


@app.command()
def encoders() -> None:
    """List the published encoders that `source: catalogue` knows."""
    from her2.config.catalogue import table

    typer.echo(table())


@app.command()
def pretrain(
    spec: SpecOption,
    cache: CacheOption,
    out: OutOption,
    init: Annotated[Path | None, typer.Option(help="folder of the encoder to begin from")] = None,
    threads: ThreadsOption = 1,
) -> None:
    """Stage 1: train an encoder on labelled patches."""
    from her2.pretraining.stage import pretrain_encoder
    from her2.storage.cache import Cache

    job = jobs.load(jobs.EncoderSpec, spec)
    pretrain_encoder(job, Cache(cache), out, init=init, threads=threads)


@app.command()
def overlap(
    spec: SpecOption,
    encoder: Annotated[Path, typer.Option(help="the encoder's folder")],
    cohort: Annotated[Path, typer.Option(help="the audit's table")],
    out: OutOption,
) -> None:
    """Stage 1: stop when an encoder was pre-trained on patients of the cohort."""
    import polars as pl

    from her2.pretraining.overlap import audit_overlap

    job = jobs.load(jobs.OverlapSpec, spec)
    audit_overlap(job, encoder, pl.read_parquet(cohort), out)


@app.command()
def embed(
    spec: SpecOption,
    slides: SlidesOption,
    cache: CacheOption,
    tiles: Annotated[Path, typer.Option(help="tile manifest of the bucket")],
    encoder: Annotated[Path, typer.Option(help="the encoder's folder")],
    out: OutOption,
    root: RootOption = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    compiling: Annotated[
        Literal["auto", "never", "always"], typer.Option("--compile", help="torch.compile")
    ] = "auto",
    threads: ThreadsOption = 1,
    scratch: Annotated[
        str | None, typer.Option(help="folder of this machine to copy slides to first")
    ] = None,
) -> None:
    """Stage 1: embed the tiles of a bucket of slides."""
    from her2.embedding.stage import embed_bucket
    from her2.storage.cache import Cache

    job = jobs.load(jobs.EmbedSpec, spec)
    embed_bucket(
        job,
        _cohort(slides, root),
        Cache(cache),
        tiles=tiles,
        encoder=encoder,
        output=out,
        batch_size=batch_size,
        threads=threads,
        compiling=compiling,
        scratch=scratch,
    )


@app.command()
def folds(spec: SpecOption, slides: SlidesOption, out: OutOption, root: RootOption = None) -> None:
    """Stage 2: patient-grouped, stratified folds of a task."""
    from her2.cohort.folds import make_folds

    job = jobs.load(jobs.FoldsSpec, spec)
    make_folds(job, _cohort(slides, root, (job.task.label,)), out)


@app.command()
def similar(
    spec: SpecOption,
    cohort: Annotated[Path, typer.Option(help="the audit's table")],
    features: FeaturesOption,
    cache: CacheOption,
    out: OutOption,
) -> None:
    """Stage 2: stop when slides of two patients show the same tissue, by their features."""
    import polars as pl

    from her2.cohort.similar import find_similar
    from her2.storage.cache import Cache

    job = jobs.load(jobs.SimilarSpec, spec)
    find_similar(job, pl.read_parquet(cohort), Cache(cache), features=features, output=out)


@app.command()
def train(
    spec: SpecOption,
    folds: FoldsOption,
    features: FeaturesOption,
    cache: CacheOption,
    out: OutOption,
    threads: ThreadsOption = 1,
) -> None:
    """Stage 2: train some folds of an encoder and head, predict what they hold out."""
    from her2.mil.stage import train_folds
    from her2.storage.cache import Cache

    job = jobs.load(jobs.TrainSpec, spec)
    train_folds(job, Cache(cache), folds=folds, features=features, output=out, threads=threads)


@app.command()
def predict(
    models: Annotated[
        list[Path], typer.Argument(help="folders of trained folds (of one task), to be averaged")
    ],
    features: Annotated[
        Path, typer.Option("--features", help="folder of feature stores {slide_id}.zarr.zip")
    ],
    out: Annotated[Path, typer.Option("--out", help="the table, .csv or .parquet")],
    threads: ThreadsOption = 1,
) -> None:
    """Predict slides of another cohort; features of another encoder are refused."""
    from her2.mil.apply import predict_slides

    predict_slides(models, features, out, threads=threads)


@app.command()
def evaluate(
    spec: SpecOption, folds: FoldsOption, models: ModelsOption, cache: CacheOption, out: OutOption
) -> None:
    """Stage 2: out-of-fold figures of an encoder and head."""
    from her2.evaluation.stage import evaluate as run
    from her2.storage.cache import Cache

    job = jobs.load(jobs.EvaluateSpec, spec)
    run(job, Cache(cache), folds=folds, models=models, output=out)


@app.command()
def compare(
    spec: SpecOption,
    evaluation: Annotated[Path, typer.Option(help="the task's folder of evaluated models")],
    out: OutOption,
) -> None:
    """Stage 2: differences between encoders on identical patients."""
    from her2.evaluation.compare import compare as run

    run(jobs.load(jobs.CompareSpec, spec), evaluation, out)


@app.command()
def control(
    spec: SpecOption,
    predictions: Annotated[Path, typer.Option(help="the model's predictions table")],
    folds: FoldsOption,
    cohort: Annotated[Path, typer.Option(help="the table of all slides on all grids")],
    out: OutOption,
) -> None:
    """Stage 2: covariates alone, shuffled labels and parts of the cohort, beside one model."""
    from her2.evaluation.controls.stage import control as run

    job = jobs.load(jobs.ControlSpec, spec)
    run(job, predictions=predictions, folds=folds, cohort=cohort, output=out)


@app.command()
def heatmap(
    spec: SpecOption,
    slides: SlidesOption,
    folds: FoldsOption,
    models: ModelsOption,
    features: FeaturesOption,
    cache: CacheOption,
    out: OutOption,
    root: RootOption = None,
    masks: Annotated[Path | None, typer.Option(help="folder of ground truths")] = None,
) -> None:
    """Stage 2: attention pictures of some held-out slides."""
    from her2.explanation.heatmap_stage import draw_heatmaps
    from her2.storage.cache import Cache

    draw_heatmaps(
        jobs.load(jobs.HeatmapSpec, spec),
        _cohort(slides, root),
        Cache(cache),
        folds=folds,
        models=models,
        features=features,
        masks=masks,
        output=out,
    )


@app.command()
def attention(
    spec: SpecOption,
    folds: FoldsOption,
    models: ModelsOption,
    features: FeaturesOption,
    cache: CacheOption,
    out: OutOption,
    masks: Annotated[Path | None, typer.Option(help="folder of ground truths")] = None,
    threads: ThreadsOption = 1,
) -> None:
    """Stage 2: localisation, faithfulness and agreement of attention."""
    from her2.explanation.attention_stage import measure_attention
    from her2.storage.cache import Cache

    measure_attention(
        jobs.load(jobs.AttentionSpec, spec),
        Cache(cache),
        folds=folds,
        models=models,
        features=features,
        masks=masks,
        output=out,
        threads=threads,
    )


@app.command()
def report(
    spec: SpecOption,
    results: Annotated[Path, typer.Option(help="the results folder")],
    out: OutOption,
) -> None:
    """Stage 2: one self-contained HTML page from the tables, and the tables beside it."""
    from her2.report.build import build_report

    build_report(jobs.load(jobs.ReportSpec, spec), results, out)


def _cohort(slides: Path, root: Path | None, labels: tuple[str, ...] = ()) -> "Cohort":
    """The manifest as a stage reads it: labels are checked where the config is."""
    from her2.cohort.manifest import read_labels

    return read_labels(slides, root=root, labels=labels)
