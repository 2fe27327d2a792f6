"""Features out: the forms in which features are written, one file each.

Every module of this package whose name does not begin with an underscore is a form, found by
listing the package. It names the source of the layout in its docstring and ends with `WRITER`.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import polars as pl

from her2.core.errors import UserError
from her2.exchange.outgoing import Outgoing
from her2.exchange.slide_features import SlideFeatures


def no_tables(outgoing: Outgoing, slides: Sequence[str]) -> Mapping[str, pl.DataFrame]:
    """Return no table, for a form that has none."""
    return {}


def no_advice(outgoing: Outgoing, slides: Sequence[str], out: Path) -> tuple[str, ...]:
    """Return no lines, for a form that needs no configuration."""
    return ()


@dataclass(frozen=True, slots=True)
class Writer:
    """A form of feature files.

    Attributes:
        name: of the module, and what users write.
        words: the form in a few words, for `--help`.
        files: role -> path of what is written of a slide, relative to the folder of the export. A
            path that ends with `.zarr` is a folder.
        write: writes a slide to the paths of its roles, which are temporary.
        losses: what the other program does not get, or less exactly than the store has it, as
            sentences that hold for other slides too.
        tables: file name -> table that is written after the slides of an export; slide ids sorted.
        advice: lines that tell what the other program then needs, for the slides and the folder of
            the export.
        needs: properties of `SlideFeatures` without which a slide cannot be written. Features that
            another program computed may lack them.
        package: a package that `write` needs and her2 does not.
        version: raised when the files change for the same store; those of older versions are
            written again.
    """

    name: str
    words: str
    files: Callable[[Outgoing, SlideFeatures], Mapping[str, str]]
    write: Callable[[Outgoing, SlideFeatures, Mapping[str, Path]], None]
    losses: Callable[[Outgoing, SlideFeatures], Sequence[str]]
    tables: Callable[[Outgoing, Sequence[str]], Mapping[str, pl.DataFrame]] = no_tables
    advice: Callable[[Outgoing, Sequence[str], Path], Sequence[str]] = no_advice
    needs: Sequence[str] = ()
    package: str | None = None
    version: int = 1


def writer_names() -> list[str]:
    """Return the names of all forms, sorted."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def find_writer(name: str) -> Writer:
    """Return the form of a name.

    Raises:
        UserError: there is none, or a package that it needs is not installed.
        TypeError: its module does not end with a `WRITER` of its name.
    """
    if name not in writer_names():
        raise UserError(f"--to {name}: is no form; give one of {', '.join(writer_names())}.")
    writer = getattr(import_module(f"{__name__}.{name}"), "WRITER", None)
    if not isinstance(writer, Writer) or writer.name != name:
        raise TypeError(f"{__name__}.{name} does not define WRITER, a Writer of this name")
    if writer.package is not None:
        try:
            import_module(writer.package)
        except ImportError:
            raise UserError(
                f"--to {name}: needs the package {writer.package}; install it with "
                "`pip install '.[exchange]'` in her2's folder."
            ) from None
    return writer
