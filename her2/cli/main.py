"""The `her2` command: every stage, and a few queries, as thin calls of the package.

Each command imports what it needs when it runs, so `her2 --help` loads neither torch nor timm.
"""

import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from her2 import __version__
from her2.cli.admin import cache_app, config_app, synthetic_app
from her2.cli.bundle import bundle_app
from her2.cli.cohort import cohort_app
from her2.cli.doctor.command import doctor
from her2.cli.encoders import encoders
from her2.cli.export import export
from her2.cli.heatmaps import heatmaps
from her2.cli.imports import import_app
from her2.cli.inspect import explain_slide, show_status
from her2.cli.power import show_power
from her2.cli.predict import predict
from her2.cli.stages import StageGroup
from her2.cli.view import view
from her2.core.errors import UserError
from her2.core.events import begin_events, write_event
from her2.core.hardware import bound_busy_waiting
from her2.core.logs import begin_log, redacted_stderr
from her2.core.sharing import denied

app = typer.Typer(
    cls=StageGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cohort_app, name="cohort")
app.add_typer(import_app, name="import")
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")
app.add_typer(synthetic_app, name="synthetic")
app.add_typer(bundle_app, name="bundle")
app.command("status")(show_status)
app.command("explain")(explain_slide)
app.command("doctor")(doctor)
app.command("encoders")(encoders)
app.command("power")(show_power)
app.command("predict")(predict)
app.command("export")(export)
app.command("heatmaps")(heatmaps)
app.command("view")(view)


def main() -> None:
    """Run the command line; a user's mistake prints a message and exits with 1."""
    with redacted_stderr():
        _run()


def _run() -> None:
    begin_log()
    bound_busy_waiting()
    begin_events()
    try:
        app()
    except SystemExit as done:
        if done.code == 2:
            write_event("failed", reason="its options are wrong; see its log")
        elif done.code:  # typer's code for Ctrl-C
            write_event("failed", reason="interrupted")
        else:
            write_event("ended")
        raise
    except UserError as error:
        _fail(str(error))
    except Exception as error:
        notes = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        if isinstance(error, PermissionError) and isinstance(error.filename, str):
            _fail(f"{notes}{denied(Path(error.filename), 'used')}")
        traceback.print_exc()
        _fail(f"{notes}{type(error).__name__}: {error}")


def _fail(reason: str) -> NoReturn:
    print(f"her2: {reason}", file=sys.stderr)
    write_event("failed", reason=reason)
    sys.exit(1)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """HER2 scores from H&E slides: tile, embed once, train, evaluate, report."""
    if show:
        print(__version__)
        raise typer.Exit
