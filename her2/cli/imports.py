"""The `her2` command: `her2 import`, one command for each source of cohorts.

A source is imported only when its command runs, or when the sources are listed.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from her2.cli.signatures import (
    LazyCommand,
    argument_help,
    argument_option,
    option,
    with_signature,
)
from her2.core.errors import UserError

_COMMON = ("out", "threads", "force", "external")


class SourceGroup(TyperGroup):
    """A command for each source that is installed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the sources."""
        from her2.importing.registry import source_names

        return list(source_names())

    def get_command(self, ctx: Any, name: str) -> Any:
        """Return a source's command, None if there is no such source."""
        from her2.importing.registry import find_source, source_names

        if name not in source_names():
            return None
        source = find_source(name)
        return LazyCommand(name, partial(as_import, source), source.title)


import_app = typer.Typer(
    cls=SourceGroup,
    help="Make slides.csv and a config of a download or an export; without a name, list the "
    "sources.",
    invoke_without_command=True,
)


@import_app.callback()
def list_sources(context: typer.Context) -> None:
    """List the sources where none was named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def as_import(source: Any) -> Callable[..., None]:
    """Return the function of a source for typer, with options in place of its arguments."""
    place, *arguments = inspect.signature(source.read, eval_str=True).parameters.values()
    words = argument_help(source.read)
    own = [one for one in arguments if one.name not in _COMMON]
    takes_threads = any(one.name == "threads" for one in arguments)

    def run(**given: Any) -> None:
        from her2.importing.run import import_cohort

        folder, out = given.pop(place.name), given.pop("out")
        common = {name: given.pop(name) for name in ("threads", "force", "external")}
        if takes_threads:
            given["threads"] = common["threads"]
        done = import_cohort(source, folder, out or Path(source.name), given, **common)
        for line in done.lines:
            typer.echo(line)
        if done.mends:
            raise UserError(
                "everything is written, but a run would stop; mend this in the config or the data "
                "first, or add --external if models of another cohort are to be tested on this "
                "one and none is trained on it:\n" + "\n".join(f"  - {one}" for one in done.mends)
            )

    return with_signature(
        run,
        [
            option(
                place.name,
                Path,
                typer.Argument(help=words.get(place.name)),
            ),
            *(argument_option(one, words) for one in own),
            option(
                "out",
                Path | None,
                typer.Option("--out", help=f"folder for what is written; default: {source.name}"),
                None,
            ),
            option(
                "threads",
                int,
                typer.Option("--threads", min=1, help="slides that are opened at the same time"),
                4,
            ),
            option(
                "force",
                bool,
                typer.Option("--force", help="write over files that others made or changed"),
                False,
            ),
            option(
                "external",
                bool,
                typer.Option(
                    "--external",
                    help="models of another cohort are to be tested on this one: no config and no "
                    "folds are made, and the lines for the config of the models are printed",
                ),
                False,
            ),
        ],
    )
