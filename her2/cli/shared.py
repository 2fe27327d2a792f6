"""The `her2` command: the cache that the environment names."""

from pathlib import Path

import typer

from her2.core.errors import UserError
from her2.core.paths import user_path


def filled_in_cache(context: typer.Context, parameter: typer.CallbackParam, value: Path) -> Path:
    """Fill in `~` and variables of HER2_CACHE, as a run does; a shell has done so for `--cache`.

    Raises:
        UserError: it can be no path; with the fix.
    """
    source = context.get_parameter_source(str(parameter.name))
    if source is None or source.name != "ENVIRONMENT":
        return value
    try:
        return user_path(str(value))
    except ValueError as problem:
        raise UserError(f"the environment variable HER2_CACHE: {problem}.") from None


def words(text: str, option: str) -> tuple[str, ...]:
    """Return what stands between commas.

    Raises:
        UserError: that is nothing.
    """
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise UserError(f"{option} {text!r}: names nothing.")
    return found
