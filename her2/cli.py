"""The `her2` command: every stage, and a few questions, as thin calls of the package.

Each command imports what it needs when it runs: `her2 --help` loads neither torch nor timm.
"""

import csv
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from her2 import __version__, specs
from her2.errors import UserError

if TYPE_CHECKING:
    from her2.cohort import Cohort

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cohort_app = typer.Typer(help="Questions about a manifest.", no_args_is_help=True)
config_app = typer.Typer(help="Questions about a config.", no_args_is_help=True)
cache_app = typer.Typer(help="The content-addressed cache.", no_args_is_help=True)
synthetic_app = typer.Typer(help="The synthetic demo cohort.", no_args_is_help=True)
app.add_typer(cohort_app, name="cohort")
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")
app.add_typer(synthetic_app, name="synthetic")

SpecOption = Annotated[str, typer.Option("--spec", help="what the job depends on, as JSON")]
SlidesOption = Annotated[Path, typer.Option("--slides", help="the manifest (.csv, .parquet)")]
RootOption = Annotated[Path | None, typer.Option("--root", help="where relative paths start")]
CacheOption = Annotated[
    Path, typer.Option("--cache", envvar="HER2_CACHE", help="the content-addressed cache")
]
OutOption = Annotated[Path, typer.Option("--out", help="what the job writes")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1)]
FoldsOption = Annotated[Path, typer.Option("--folds", help="folds table of the task")]
ModelsOption = Annotated[Path, typer.Option("--models", help="folder of the chunks' manifests")]
FeaturesOption = Annotated[Path, typer.Option("--features", help="folder of feature manifests")]


def main() -> None:
    """Run the command line; a user's mistake prints its message and exits with 1."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        app()
    except UserError as error:
        print(f"her2: {error}", file=sys.stderr)
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
    threads: ThreadsOption = 1,
) -> None:
    """Stage 1: find the tiles of a bucket of slides."""
    from her2.cache import Cache
    from her2.tiling import tile_bucket

    job = specs.load(specs.TileSpec, spec)
    tile_bucket(job, _cohort(slides, root), Cache(cache), out, threads=threads)


@app.command()
def audit(
    spec: SpecOption,
    slides: SlidesOption,
    tiles: Annotated[Path, typer.Option(help="folder of the grids' folders")],
    out: OutOption,
    root: RootOption = None,
) -> None:
    """After tile: the table of the whole cohort, duplicates, exclusions."""
    from her2.audit import audit_cohort

    job = specs.load(specs.AuditSpec, spec)
    audit_cohort(job, _cohort(slides, root, job.labels), tiles, out)


@app.command()
def encoder(spec: SpecOption, out: OutOption) -> None:
    """Stage 1: put an encoder's weights and card into a folder."""
    from her2.encoders.materialise import materialise

    job = specs.load(specs.EncoderSpec, spec)
    materialise(job.encoder, job.seed, out)


@app.command()
def encoders() -> None:
    """List the published encoders that `source: catalogue` knows."""
    from her2.encoders.catalogue import table

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
    from her2.cache import Cache
    from her2.encoders.pretrained import pretrain_encoder

    job = specs.load(specs.EncoderSpec, spec)
    pretrain_encoder(job, Cache(cache), out, init=init, threads=threads)


@app.command()
def overlap(
    spec: SpecOption,
    encoder: Annotated[Path, typer.Option(help="the encoder's folder")],
    cohort: Annotated[Path, typer.Option(help="folder of the audit's table")],
    out: OutOption,
) -> None:
    """Stage 1: stop when an encoder was pre-trained on patients of the cohort."""
    from her2.audit import read_cohort_table
    from her2.encoders.overlap import audit_overlap

    job = specs.load(specs.OverlapSpec, spec)
    audit_overlap(job, encoder, read_cohort_table(cohort), out)


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
    threads: ThreadsOption = 1,
) -> None:
    """Stage 1: embed the tiles of a bucket of slides."""
    from her2.cache import Cache
    from her2.embed import embed_bucket

    job = specs.load(specs.EmbedSpec, spec)
    embed_bucket(
        job,
        _cohort(slides, root),
        Cache(cache),
        tiles=tiles,
        encoder=encoder,
        output=out,
        batch_size=batch_size,
        threads=threads,
    )


@app.command()
def folds(spec: SpecOption, slides: SlidesOption, out: OutOption, root: RootOption = None) -> None:
    """Stage 2: patient-grouped, stratified folds of a task."""
    from her2.folds import make_folds

    job = specs.load(specs.FoldsSpec, spec)
    make_folds(job, _cohort(slides, root, (job.task.label,)), out)


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
    from her2.cache import Cache
    from her2.mil.run import train_folds

    job = specs.load(specs.TrainSpec, spec)
    train_folds(job, Cache(cache), folds=folds, features=features, output=out, threads=threads)


@app.command()
def evaluate(
    spec: SpecOption, folds: FoldsOption, models: ModelsOption, cache: CacheOption, out: OutOption
) -> None:
    """Stage 2: out-of-fold figures of an encoder and head."""
    from her2.cache import Cache
    from her2.evaluation.evaluate import evaluate as run

    job = specs.load(specs.EvaluateSpec, spec)
    run(job, Cache(cache), folds=folds, models=models, output=out)


@app.command()
def compare(
    spec: SpecOption,
    evaluation: Annotated[Path, typer.Option(help="the task's folder of evaluated models")],
    out: OutOption,
) -> None:
    """Stage 2: differences between encoders on identical patients."""
    from her2.evaluation.compare import compare as run

    run(specs.load(specs.CompareSpec, spec), evaluation, out)


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
    masks: Annotated[Path | None, typer.Option(help="folder of {slide_id}.png")] = None,
) -> None:
    """Stage 2: attention pictures of some held-out slides."""
    from her2.cache import Cache
    from her2.heatmap import draw_heatmaps

    draw_heatmaps(
        specs.load(specs.HeatmapSpec, spec),
        _cohort(slides, root),
        Cache(cache),
        folds=folds,
        models=models,
        features=features,
        masks=masks,
        output=out,
    )


@app.command()
def report(
    spec: SpecOption,
    results: Annotated[Path, typer.Option(help="the results folder")],
    out: OutOption,
) -> None:
    """Stage 2: one self-contained HTML page from the tables, and the tables beside it."""
    from her2.report.build import build_report

    build_report(specs.load(specs.ReportSpec, spec), results, out)


@cohort_app.command("check")
def cohort_check(
    slides: Path,
    config: Annotated[Path, typer.Option(help="the config whose tasks the labels must fit")] = Path(
        "config.yaml"
    ),
    root: RootOption = None,
) -> None:
    """Check a manifest: ids, labels, files, and that no two slides are one file."""
    from her2.cohort import check_files, read_cohort
    from her2.config import load_config

    settings = load_config(config)
    cohort = read_cohort(slides, root=root, tasks=settings.tasks)
    check_files(cohort)
    patients = len({row.patient_id for row in cohort.rows})
    print(f"{slides}: {len(cohort.rows)} slides of {patients} patients, no problem found")


@config_app.command("check")
def config_check(config: Path) -> None:
    """Check a config."""
    from her2.config import load_config

    load_config(config)
    print(f"{config}: no problem found")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of config.yaml, for editors."""
    from her2.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@cache_app.command("ls")
def cache_ls(cache: CacheOption = Path("cache")) -> None:
    """List the products: kind, key, megabytes."""
    from her2.cache import Cache

    totals: dict[str, list[int]] = {}
    for product in Cache(cache).products():
        totals.setdefault(product.kind, []).append(product.size_bytes)
        print(f"{product.kind:9} {product.key} {product.size_bytes / 1e6:10.2f}")
    for kind, sizes in totals.items():
        print(f"{kind}: {len(sizes)} products, {sum(sizes) / 1e6:.1f} MB", file=sys.stderr)


@cache_app.command("verify")
def cache_verify(cache: CacheOption = Path("cache")) -> None:
    """Read every product again and name the broken ones; exits with 1 when there are any."""
    from her2.cache import Cache
    from her2.verify import broken_products

    count, broken = broken_products(Cache(cache))
    for product, problem in broken:
        print(f"{product.path}: {problem}")
    print(f"{count} products read, {len(broken)} broken", file=sys.stderr)
    if broken:
        raise typer.Exit(1)


@cache_app.command("prune")
def cache_prune(
    keep: Annotated[list[Path], typer.Option(help="results folders whose products stay")],
    cache: CacheOption = Path("cache"),
    yes: Annotated[bool, typer.Option("--yes", help="delete, do not only say what")] = False,
) -> None:
    """Delete products that no manifest of the kept results folders names."""
    from her2.cache import Cache, remove
    from her2.verify import unused_products

    store = Cache(cache)
    unused = unused_products(store, keep)
    leftovers = store.leftovers()
    size = sum(product.size_bytes for product in unused)
    for product in unused:
        print(f"{product.kind:9} {product.key} {product.size_bytes / 1e6:10.2f}")
    what = f"{len(unused)} products ({size / 1e6:.1f} MB) and {len(leftovers)} leftovers"
    if not yes:
        print(f"{what} would be deleted; say --yes to do it", file=sys.stderr)
        return
    for path in [*(product.path for product in unused), *leftovers]:
        remove(path)
    print(f"{what} deleted", file=sys.stderr)


@synthetic_app.command("slide")
def synthetic_slide(
    spec: SpecOption,
    slide: Annotated[Path, typer.Option(help="the .svs to write")],
    mask: Annotated[Path, typer.Option(help="the .png to write")],
    side_px: Annotated[int, typer.Option(min=256)] = 3072,
) -> None:
    """Draw one demo slide and the mask of its planted signal."""
    from her2.synthetic import draw_slide

    job = specs.load(specs.SyntheticSpec, spec)
    fields = job.model_dump(exclude={"version"})
    draw_slide(**fields, slide_path=slide, mask_path=mask, side_px=side_px)


@synthetic_app.command("patches")
def synthetic_patches(spec: SpecOption, out: OutOption) -> None:
    """Draw one labelled patch set: H&E, IHC or photographs."""
    from her2.synthetic.patches import draw_patch_set

    job = specs.load(specs.PatchesSpec, spec)
    draw_patch_set(
        job.kind,
        out.parent,
        n_per_class=job.n_per_class,
        size_px=job.size_px,
        mpp=job.mpp,
        seed=job.seed,
    )


@synthetic_app.command("manifest")
def synthetic_manifest(patients: int = 48, seed: int = 2411) -> None:
    """Print the demo's slides.csv."""
    from her2.synthetic import demo_manifest

    rows = demo_manifest(patients, seed)
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _cohort(slides: Path, root: Path | None, labels: tuple[str, ...] = ()) -> "Cohort":
    """The manifest as a stage reads it: labels are checked where the config is."""
    from her2.cohort import read_labels

    return read_labels(slides, root=root, labels=labels)
