"""The `her2` command: checks of a config and the cache, and the demo's data."""

import csv
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from her2.cli.shared import filled_in_cache
from her2.cli.stages import STAMP
from her2.config import jobs
from her2.core.errors import UserError, problem_list
from her2.core.memory import keep_freed_memory
from her2.core.stamps import writing_stamp

if TYPE_CHECKING:
    from her2.storage.cache import Cache

CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        envvar="HER2_CACHE",
        callback=filled_in_cache,
        help="the content-addressed cache; default: that of the config, else cache",
    ),
]
ConfigsOption = Annotated[
    list[Path] | None,
    typer.Option("--config", help="config of a run, for its cache and its results folder"),
]

config_app = typer.Typer(help="Check and describe a config.", no_args_is_help=True)
cache_app = typer.Typer(help="Manage the content-addressed cache.", no_args_is_help=True)
synthetic_app = typer.Typer(help="Draw the synthetic demo cohort.", no_args_is_help=True)


@config_app.command("check")
def config_check(config: Path) -> None:
    """Check a config."""
    from her2.config import load_config

    load_config(config)
    print(f"{config}: no problems found")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of config.yaml, for editors."""
    from her2.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@config_app.command("page")
def config_page() -> None:
    """Print docs/config.md, which lists every key with its meaning, limits and default."""
    from her2.config.page import page

    print(page(), end="")


@cache_app.command("ls")
def cache_ls(cache: CacheOption = None, config: ConfigsOption = None) -> None:
    """List the products with kind, key and megabytes."""
    totals: dict[str, list[int]] = {}
    for product in _cache(cache, config).products():
        totals.setdefault(product.kind, []).append(product.size_bytes)
        print(f"{product.kind:9} {product.key} {product.size_bytes / 1e6:10.2f}")
    for kind, sizes in totals.items():
        print(f"{kind}: {len(sizes)} products, {sum(sizes) / 1e6:.1f} MB", file=sys.stderr)


@cache_app.command("verify")
def cache_verify(
    cache: CacheOption = None,
    config: ConfigsOption = None,
    threads: Annotated[int, typer.Option(min=0, help="reader threads; 0: all allowed cores")] = 0,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="move broken products aside, to be made again")
    ] = False,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="with --quarantine: results folders whose jobs should run again; default: those "
            "of the configs, else results"
        ),
    ] = None,
) -> None:
    """Read every product and name the broken ones; exit with 1 if there are any."""
    from her2.core.hardware import allowed_cpus
    from her2.storage.upkeep import forget
    from her2.storage.verify import broken_products

    store = _cache(cache, config)
    count, broken = broken_products(store, threads=threads or allowed_cpus())
    for product, problem in broken:
        print(f"{product.path}: {problem}")
    print(f"{count} products read, {len(broken)} broken", file=sys.stderr)
    if not broken:
        return
    if quarantine:
        for product, _ in broken:
            print(f"moved to {store.quarantine(product)}", file=sys.stderr)
        keys = [product.key for product, _ in broken]
        deleted = forget(keys, _results(results, config) or [Path("results")])
        for path in deleted:
            print(f"{path} named one of them and was deleted", file=sys.stderr)
        _make_again(deleted)
    raise typer.Exit(1)


@cache_app.command("forget")
def cache_forget(
    slides: Annotated[list[str], typer.Argument(help="slide ids of the manifest")],
    cache: CacheOption = None,
    config: ConfigsOption = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="results folders that have the slides; default: those of the configs"),
    ] = None,
) -> None:
    """Delete the tile tables and features of slides, to be made again with all their tiles."""
    from her2.storage.upkeep import forget_slides

    folders = _results(results, config)
    if not folders:
        raise typer.BadParameter("name the run with --config CONFIG or --results RESULTS")
    found = forget_slides(_cache(cache, config), slides, folders)
    for path in found.products:
        print(path)
    print(f"{len(found.products)} products deleted", file=sys.stderr)
    _make_again(found.entries)


@cache_app.command("prune")
def cache_prune(
    keep: Annotated[
        list[Path] | None, typer.Option(help="results folders whose products are kept")
    ] = None,
    config: ConfigsOption = None,
    cache: CacheOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="delete; without this, only list")] = False,
    others: Annotated[
        bool, typer.Option("--others", help="also what other users made; without this, it is kept")
    ] = False,
) -> None:
    """List and delete the products that nothing in the kept results folders names."""
    from her2.core.sharing import is_mine
    from her2.storage.cache import remove, size_bytes
    from her2.storage.upkeep import unused_products

    folders = [*(keep or []), *_results(None, config)]
    if not folders:
        raise typer.BadParameter("name what to keep with --keep RESULTS or --config CONFIG")
    store = _cache(cache, config)
    unused = unused_products(store, folders)
    aside = [*store.quarantined(), *store.leftovers()]
    if not others:
        found = len(unused) + len(aside)
        unused = [product for product in unused if is_mine(product.path)]
        aside = [path for path in aside if is_mine(path)]
        if kept := found - len(unused) - len(aside):
            print(
                f"{kept} made by other users are kept, as their results may need them; name their "
                "results with --keep too, and add --others to delete the rest",
                file=sys.stderr,
            )
    totals: dict[str, list[int]] = {}
    for product in unused:
        totals.setdefault(product.kind, []).append(product.size_bytes)
        print(f"{product.kind:9} {product.key} {product.size_bytes / 1e6:10.2f}")
    for path in aside:
        totals.setdefault("leftovers and broken", []).append(size_bytes(path))
        print(path)
    for kind, sizes in totals.items():
        print(f"{kind}: {len(sizes)}, {sum(sizes) / 1e6:.1f} MB", file=sys.stderr)
    size = sum(product.size_bytes for product in unused)
    what = f"{len(unused)} products ({size / 1e6:.1f} MB) and {len(aside)} leftovers"
    if not yes:
        print(f"{what} would be deleted; add --yes to delete them", file=sys.stderr)
        return
    refused = []
    for path in [*(product.path for product in unused), *aside]:
        try:
            remove(path)
        except UserError as error:
            refused.append(str(error))
    if refused:
        raise problem_list(f"{len(refused)} of {what} could not be deleted", refused)
    print(f"{what} deleted", file=sys.stderr)


def _cache(cache: Path | None, configs: list[Path] | None) -> "Cache":
    """Return the cache that was named, else that of the configs, else the default.

    Raises:
        UserError: it does not exist or is another folder, or the configs have several.
    """
    from her2.config import load_config
    from her2.storage.cache import SUFFIXES, Cache

    named = {load_config(path).cache_folder for path in configs or []}
    if cache is None and len(named) > 1:
        folders = ", ".join(sorted(map(str, named)))
        raise UserError(f"the configs have several caches ({folders}); name one with --cache.")
    root = cache or next(iter(named), Path("cache"))
    if not root.is_dir():
        raise UserError(
            f"--cache {root}: there is no such folder. Name the cache of a run, or its config with "
            "--config CONFIG."
        )
    if any(root.iterdir()) and not any((root / kind).is_dir() for kind in SUFFIXES):
        raise UserError(f"--cache {root}: is not a cache, it has none of {', '.join(SUFFIXES)}.")
    return Cache(root)


def _results(results: list[Path] | None, configs: list[Path] | None) -> list[Path]:
    """Return the results folders that were named, else those of the configs."""
    from her2.config import load_config

    return results or [load_config(path).results for path in configs or []]


def _make_again(deleted: Sequence[Path]) -> None:
    """Say how to run the jobs again whose entries files were deleted."""
    if deleted:  # a run whose report is up to date would not make them
        print(
            "make them again with `snakemake --cores 1 "
            f"{shlex.join(map(str, deleted))} --configfile CONFIG`",
            file=sys.stderr,
        )


@synthetic_app.command("slides")
def synthetic_slides(
    spec: Annotated[str, typer.Option(help="what the job depends on, as JSON")],
    root: Annotated[Path, typer.Option(help="folder of slides/{id}.svs and masks/{id}.png")],
    stamp: Annotated[Path | None, STAMP] = None,
) -> None:
    """Draw a bucket of demo slides and the masks of their planted signal."""
    from her2.synthetic import draw_slide

    keep_freed_memory()
    job = jobs.load(jobs.SyntheticSpec, spec)
    with writing_stamp(stamp, spec):
        for slide in job.slides:
            draw_slide(
                **slide.model_dump(),
                seed=job.seed,
                slide_path=root / "slides" / f"{slide.slide_id}.svs",
                mask_path=root / "masks" / f"{slide.slide_id}.png",
                side_px=job.side_px,
            )


@synthetic_app.command("patches")
def synthetic_patches(
    spec: Annotated[str, typer.Option(help="what the job depends on, as JSON")],
    out: Annotated[Path, typer.Option(help="the file that the job writes")],
    stamp: Annotated[Path | None, STAMP] = None,
) -> None:
    """Draw one labelled patch set: H&E, IHC or photographs."""
    from her2.synthetic.patches import draw_patch_set

    keep_freed_memory()
    job = jobs.load(jobs.PatchesSpec, spec)
    with writing_stamp(stamp, spec):
        draw_patch_set(
            job.kind,
            out.parent,
            n_per_class=job.n_per_class,
            size_px=job.size_px,
            mpp=job.mpp,
            seed=job.seed,
        )


@synthetic_app.command("manifest")
def synthetic_manifest(
    patients: int = 48,
    seed: int = 2411,
    east: Annotated[
        bool, typer.Option("--east", help="the other hospital's cohort, which has its own patients")
    ] = False,
) -> None:
    """Print the demo's slides.csv, or its east.csv."""
    from her2.synthetic import demo_manifest, east_manifest

    rows = east_manifest(seed) if east else demo_manifest(patients, seed)
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
