"""The `her2` command: `her2 heatmaps`, attention to chosen slides of a finished run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from her2.cli.shared import words


def heatmaps(
    results: Annotated[Path, typer.Argument(help="the results folder of a finished run")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="folder for slides/, strips/ and heatmaps.json; a slide that "
            "is there already is kept",
        ),
    ],
    slides: Annotated[
        str, typer.Option(help="ids of slides, with commas between them, or all")
    ] = "all",
    formats: Annotated[
        str,
        typer.Option(
            help="with commas between them: png (also of the tiles), geojson (QuPath), "
            "ome-tiff, parquet"
        ),
    ] = "png,geojson",
    task: Annotated[str | None, typer.Option(help="default: the only one")] = None,
    encoder: Annotated[str | None, typer.Option(help="default: the only one")] = None,
    head: Annotated[str | None, typer.Option(help="default: the only one")] = None,
    cohort: Annotated[
        str | None, typer.Option(help="an external cohort; default: the development cohort")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="says where slides and cache are; default: the config of the report"),
    ] = None,
) -> None:
    """Draw attention to chosen slides, each by models that never saw its patient."""
    wanted = words(formats, "--formats")
    ids = words(slides, "--slides")

    from her2.config import load_config
    from her2.explanation.chosen import Wish, draw_chosen
    from her2.explanation.drawing import chosen_formats

    draw_chosen(
        results,
        Wish(ids, chosen_formats(wanted), cohort),
        out,
        task=task,
        encoder=encoder,
        head=head,
        config=None if config is None else load_config(config),
        say=lambda text: print(f"her2 heatmaps: {text}", file=sys.stderr, flush=True),
    )
