"""`her2 doctor`: the command, and its screen."""

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from her2.cli.doctor.base import Finding, Situation, findings

_MARKS = {"ok": "ok", "note": "--", "bad": "BAD"}
_WIDTH = 110


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(help="the config of the run to come; default: config.yaml, if there is one"),
    ] = None,
) -> None:
    """Look over this machine before a run: software, GPU, disks, hub, encoders, a slide.

    Each finding says how to mend it. The exit status is 0 if a run could begin.
    """
    from her2.cli.doctor.checks import all_checks
    from her2.config import load_config
    from her2.core.errors import UserError

    path = config or (Path("config.yaml") if Path("config.yaml").exists() else None)
    situation = Situation(path, None)
    problem = ""
    if path is not None:
        try:
            situation = Situation(path, load_config(path))
        except UserError as error:
            problem = str(error)
    head = Finding("ok", str(path)) if path else Finding(
        "note", "none, so nothing was looked up for it", "her2 doctor --config mine.yaml"
    )  # fmt: skip
    if problem:
        head = Finding("bad", problem, "correct the config; the rest is looked over without it")
    found = [("config", [head])]
    _show(*found[0])
    for check in all_checks():
        found.append((check.title, findings(check, situation)))
        _show(*found[-1])
    bad = sum(one.level == "bad" for _, several in found for one in several)
    if bad:
        things = "one thing keeps" if bad == 1 else f"{bad} things keep"
        typer.echo(f"\n{things} a run from beginning, see BAD above.")
        raise typer.Exit(1)
    typer.echo("\nA run could begin.")


def _show(title: str, found: list[Finding]) -> None:
    for index, one in enumerate(found):
        head = f"{_MARKS[one.level]:4}{title if index == 0 else '':11}"
        lines = [line for part in one.text.splitlines() for line in _wrapped(part)]
        typer.echo(head + f"\n{' ' * 15}".join(lines))
        if one.mend:
            for number, line in enumerate(_wrapped(one.mend)):
                typer.echo(f"{' ' * 15}{'-> ' if number == 0 else '   '}{line}")


def _wrapped(text: str) -> list[str]:
    """Break a line between words; paths and commands stay whole."""
    return textwrap.wrap(text, _WIDTH - 18, break_long_words=False, break_on_hyphens=False) or [""]
