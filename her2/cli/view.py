"""The `her2` command: `her2 view`, a finished run in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from her2.core.errors import UserError

_MODULES = ("starlette", "uvicorn", "xstatic.pkg.leaflet")
"""What the extra `view` brings."""


def view(
    results: Annotated[
        Path | None,
        typer.Argument(
            help="the results folder of a run; default: results, if no predictions are given"
        ),
    ] = None,
    slide: Annotated[
        str | None,
        typer.Argument(help="open the page of this slide: its id, or COHORT/ID"),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--bundle-predictions",
            help="a table of `her2 predict --bundle`, as a cohort of its own",
        ),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(help="with --bundle-predictions: the folder or manifest that was predicted"),
    ] = None,
    heatmaps: Annotated[
        Path | None,
        typer.Option(help="with --bundle-predictions: what `her2 predict --heatmaps` has drawn"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="the address to listen on; others than this machine's need consent")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="the port to listen on; default: a free one")
    ] = 0,
    browser: Annotated[
        bool, typer.Option(help="open the page in the browser, where there is a screen")
    ] = True,
    config: Annotated[
        Path | None,
        typer.Option(help="says where slides and cache are; default: the config of the report"),
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(help="folder of notes; default: RESULTS-notes, beside the results"),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PORT]",
            help="a further name under which a browser may ask, as behind a proxy",
        ),
    ] = None,
    expose: Annotated[
        bool,
        typer.Option(
            "--yes-expose",
            help="with --host: let other machines ask, though nothing is encrypted",
        ),
    ] = False,
) -> None:
    """Look at a run in the browser: its cohort, its slides, and what the models saw."""
    _check_installed()
    if predictions is None and (given := [name for name, value in
                                          (("--slides", slides), ("--heatmaps", heatmaps))
                                          if value is not None]):  # fmt: skip
        raise UserError(f"{', '.join(given)}: is about --bundle-predictions, which is not given.")

    from her2.config import load_config
    from her2.viewer.run import open_run, page_of
    from her2.viewer.server import Place, check_place, serve

    place = Place(
        host=host, port=port, open_browser=browser, names=tuple(allow_host or ()), exposed=expose
    )
    check_place(place)
    if results is None and predictions is None:
        results = Path("results")
    run = None
    if results is not None:
        run = open_run(results, None if config is None else load_config(config))
    if predictions is not None:
        from her2.viewer.predicted import Predictions, with_predictions

        run = with_predictions(run, Predictions(predictions, slides, heatmaps))
    assert run is not None
    named = run.folder.name if results is not None else run.folder.stem
    serve(
        run,
        notes or run.folder.with_name(f"{named}-notes"),
        place,
        path="/" if slide is None else page_of(run, slide),
        say=lambda text: print(text, flush=True),
    )


def _check_installed() -> None:
    """Check that the extra is installed.

    Raises:
        UserError: it is not; with the line that installs it.
    """
    from importlib import import_module

    for name in _MODULES:
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"her2 view: needs the package {error.name or name}; install it with "
                "`pip install '.[view]'` in her2's folder."
            ) from None
