"""The `her2` command: features in the form that another program reads."""

from pathlib import Path
from typing import Annotated

import typer

from her2.cli.shared import words
from her2.core.errors import problem_list


def _forms() -> list[str]:
    from her2.exchange.writers import writer_names

    return writer_names()


def export(
    results: Annotated[Path, typer.Argument(help="the results folder of a run")],
    form: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORM",
            help="anndata, clam, parquet, spatialdata, stamp or trident, see docs/exchange.md",
            autocompletion=_forms,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="the folder to write, new, empty or of an earlier export")
    ],
    encoder: Annotated[str | None, typer.Option(help="default: the only one")] = None,
    slides: Annotated[
        str | None, typer.Option(help="ids of slides, with commas between them; default: all")
    ] = None,
    cohort: Annotated[
        str, typer.Option(help="an external cohort; default: the development cohort")
    ] = "",
) -> None:
    """Write the features of an encoder as another program reads them."""
    from her2.exchange.export import export_features

    chosen = None if slides is None else words(slides, "--slides")
    done = export_features(results, out, form, encoder=encoder, slides=chosen, cohort=cohort)
    print(f"{out}: {len(done.written)} slides written, {len(done.kept)} were there already")
    for slide_id in done.removed:
        print(f"  {slide_id}: has no features any more; its files are deleted")
    for slide_id, why in done.left_out.items():
        print(f"  {slide_id}: left out, it has no features: {why}")
    total = len(done.written) + len(done.kept)
    for what, count in done.losses.items():
        print(f"Note, for {count} of {total} slides: {what}")
    for line in done.advice:
        print(line)
    if done.caution:
        print(f"Caution: {done.caution}")
    if done.failed:
        raise problem_list(
            f"{out}: {len(done.failed)} slides could not be exported; all others are",
            [f"{slide_id}: {why}" for slide_id, why in done.failed.items()],
        )
