"""The `her2` command: `her2 view`, a finished run in the browser."""

from pathlib import Path
from typing import Annotated

import typer


def view(
    results: Annotated[Path, typer.Argument(help="the results folder of a finished run")] = Path(
        "results"
    ),
    port: Annotated[int, typer.Option(help="default: a free one")] = 0,
    browser: Annotated[bool, typer.Option(help="open the page in the browser")] = True,
    config: Annotated[
        Path | None,
        typer.Option(help="says where slides and cache are; default: the config of the report"),
    ] = None,
) -> None:
    """Look at a run in the browser: its cohort, its slides, and what the models saw."""
    from her2.config import load_config
    from her2.viewer.run import open_run
    from her2.viewer.server import Place, serve

    run = open_run(results, None if config is None else load_config(config))
    notes = results.absolute().with_name(f"{results.absolute().name}-notes")
    serve(
        run, notes, Place(port=port, open_browser=browser), say=lambda text: print(text, flush=True)
    )
