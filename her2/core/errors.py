"""Every stage: the errors that a user can fix, and the slide that any other error came from."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a config, a manifest or a file: shown as its message, without a traceback.

    The message names the slide or the config key, the value, and the fix.
    """


@contextmanager
def blamed_on(name: str) -> Iterator[None]:
    """Add the slide (or fold) being processed to an unexpected exception; see `her2.cli.main`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        error.add_note(name)
        raise


def check_kind(what: str, given: object, *kinds: type, fix: str) -> None:
    """Check that a script gives what a function takes.

    Raises:
        UserError: it is of none of the kinds; with the fix.
    """
    if not isinstance(given, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{what} {given!r:.200}: is a {type(given).__name__}, no {names}; {fix}.")


def problem_list(headline: str, problems: Iterable[str], *, limit: int = 50) -> UserError:
    """Join many problems into one error, so that a user can fix all of them in one pass."""
    found = list(problems)
    lines = [headline, *(f"  - {problem}" for problem in found[:limit])]
    if len(found) > limit:
        lines.append(f"  ... and {len(found) - limit} more")
    return UserError("\n".join(lines))


class SlideError(Exception):
    """A slide that cannot be read; the message is the reason that the report shows."""


class SlideUnfit(SlideError):
    """A slide that can be read but not used."""


class TileError(Exception):
    """A region that cannot be read, on a slide that stays usable."""


def first_line(error: BaseException, *, limit: int = 300) -> str:
    """Return the first line of an error's text, cut to `limit`; its type where it has no text."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= limit else f"{line[:limit]} ..."
