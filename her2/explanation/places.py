"""After a run: where its slides and its cache are, for commands that look at finished results."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from her2.config import Config
from her2.config.jobs import ReportSpec
from her2.core.errors import UserError
from her2.core.scratch import swept_folder
from her2.core.sharing import make_folder
from her2.core.stamps import FOLDER as STAMPS
from her2.frozen.bundle.asked import read_spec
from her2.storage.cache import Cache

log = logging.getLogger(__name__)

_TEMPORARY = ".her2-cache-"


@dataclass(frozen=True, slots=True)
class RunPlaces:
    """The config of a run, and the folder that its relative paths start in."""

    config: Config
    root: Path

    @classmethod
    def of(cls, results: Path, config: Config | None) -> "RunPlaces":
        """Return the places of a run by the config of its report, or by another config.

        Relative paths of the report's config start where the results folder was made.

        Raises:
            UserError: there is neither a config nor a report.
        """
        if config is not None:
            return cls(config, Path.cwd())
        stamp = results / STAMPS / "build_report.json"
        if not stamp.is_file():
            raise UserError(
                f"{results}: has no report yet, which knows where the slides are; run snakemake to "
                "its end, or name the run's config with --config."
            )
        own = read_spec(ReportSpec, stamp).config
        place = results.absolute().resolve()
        parts = own.results.parts
        beside = not own.results.is_absolute() and place.parts[-len(parts) :] == parts
        return cls(own, Path(*place.parts[: -len(parts)]) if beside else Path.cwd())

    def path(self, path: Path | None) -> Path | None:
        """Return a path of the config, as it is from here."""
        return None if path is None else self.root / path

    @contextmanager
    def cache(self, output: Path) -> Iterator[Cache]:
        """Yield the run's cache or, where it is not on this machine, an empty one in `output`."""
        folder = self.root / self.config.cache_folder
        if folder.is_dir():
            yield Cache(folder)
            return
        log.info("the cache %s is not here; the files in the results are read", folder)
        make_folder(output)
        with swept_folder(output, _TEMPORARY) as temporary:
            yield Cache(temporary)
