"""The `her2` command: the published encoders."""

from enum import StrEnum
from typing import Annotated

import typer


class Images(StrEnum):
    """Kinds of training images that `--domain` knows."""

    HE = "he"
    IHC = "ihc"
    NATURAL = "natural"


def encoders(
    name: Annotated[
        str | None, typer.Argument(help="a row to explain; default: the table of all")
    ] = None,
    ungated: Annotated[
        bool, typer.Option("--open", help="only weights that anybody can download")
    ] = False,
    commercial: Annotated[
        bool,
        typer.Option(
            "--commercial",
            help="only weights that may be used commercially, if only under conditions",
        ),
    ] = False,
    domain: Annotated[
        Images | None, typer.Option(help="only encoders trained on such images, among others")
    ] = None,
) -> None:
    """List the published encoders that `source: catalogue` knows, or explain one."""
    from her2.config.catalogue import row
    from her2.config.encoder_page import chosen, explained, table

    if name is not None:
        typer.echo(explained(row(name)))
        return
    kind = domain.value if domain else None
    found = chosen(ungated=ungated, commercial=commercial, domain=kind)
    typer.echo(table(found) if found else "No encoder of the catalogue is like that.")
