"""Every stage: the one exception that means the user can mend it, and whose turn any other was."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a config, a manifest or a file: shown as its message, without a traceback.

    The message names the slide or the config key, the value, and the mend.
    """


@contextmanager
def blamed_on(name: str) -> Iterator[None]:
    """Add the slide (or fold) at work to an exception that nobody expected; see `her2.cli.main`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        error.add_note(name)
        raise


def problem_list(headline: str, problems: Iterable[str], *, limit: int = 50) -> UserError:
    """One error out of many problems, so that a person can mend a manifest in one pass."""
    found = list(problems)
    lines = [headline, *(f"  - {problem}" for problem in found[:limit])]
    if len(found) > limit:
        lines.append(f"  ... and {len(found) - limit} more")
    return UserError("\n".join(lines))


class SlideError(Exception):
    """A slide that cannot be read; the message is the reason that the report shows."""


class SlideUnfit(SlideError):
    """A slide that reads well and still cannot be used."""


class TileError(Exception):
    """One region that cannot be read; the slide itself stays usable."""
