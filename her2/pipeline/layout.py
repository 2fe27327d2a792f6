"""Before every stage: the jobs that a config and a cohort give by name, and the files they read.

The module imports nothing heavy, writes nothing and reads nothing, since it runs at parse time in
every job. Only files that users own are looked up: those of slides, ground truths and weights.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from her2.cohort.manifest import TRUTH_SUFFIXES, Cohort, SlideRow
from her2.config import Config, FoldsSection
from her2.config.names import DEVELOPMENT, PUBLISHED, Run, chunks
from her2.core.errors import UserError
from her2.core.stamps import files_state
from her2.exchange.matching import MatchedFiles
from her2.exchange.slides import match_slides
from her2.pretraining.formats import patch_files
from her2.segmenters import chosen
from her2.segmenters.base import Segmenter
from her2.slides.backends import planned_files


@dataclass(frozen=True)
class Layout:
    """A config with the cohort that it names: buckets, folds, chunks, heads and input files.

    `part` is the cohort's folder in the results (`her2.config.names.cohort_folder`).
    """

    config: Config
    cohort: Cohort
    part: str = DEVELOPMENT

    @property
    def folder(self) -> Path:
        """Return the folder of the results that has this cohort's tiles and features."""
        return self.config.results / self.part

    @cached_property
    def by_bucket(self) -> dict[str, tuple[SlideRow, ...]]:
        """Return bucket name -> slides."""
        return self.cohort.buckets(self.config.cohort.slides_per_bucket)

    @property
    def buckets(self) -> tuple[str, ...]:
        """Return the bucket names, sorted."""
        return tuple(self.by_bucket)

    @cached_property
    def slides(self) -> dict[str, SlideRow]:
        """Return slide id -> row."""
        return {row.slide_id: row for row in self.cohort.rows}

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the manifest's columns that any task reads, sorted."""
        return tuple(sorted({task.label for task in self.config.tasks.values()}))

    @cached_property
    def split(self) -> bool:
        """Return whether the manifest's column `split` replaces cross-validation."""
        if self.config.folds.split == "ignore" or not any(row.split for row in self.cohort.rows):
            return False
        if self.config.published_protocol:
            raise UserError(
                "published_protocol: true splits slides at random, but the manifest has a column "
                "'split'. Set folds.split: ignore, or published_protocol: false."
            )
        return True

    @cached_property
    def folds(self) -> FoldsSection:
        """Return the config's `folds` as they apply to this cohort.

        Raises:
            UserError: `leave_one_out` with another number of folds than there are sites.
        """
        section = self.config.folds
        if self.split:
            # One fold of one repeat, which only parsing refuses.
            return section.model_copy(update={"number": 1, "repeats": 1})
        labels = {task.label for task in self.config.tasks.values()}
        sites = {row.site for row in self.cohort.rows if row.site and labels & row.labels.keys()}
        if section.sites == "leave_one_out" and section.number != len(sites):
            raise UserError(
                f"folds.number {section.number} with `sites: leave_one_out`: each fold tests one "
                f"site, and the labelled slides are of {len(sites)} "
                f"({', '.join(sorted(sites)) or 'the column site is empty'}); "
                + (f"set folds.number to {len(sites)}." if len(sites) > 1 else "set folds.sites.")
            )
        return section

    @cached_property
    def chunks(self) -> dict[str, tuple[Run, ...]]:
        """Return chunk name -> the runs that one training job takes."""
        return chunks(self.folds, self.config.training.seeds)

    @property
    def first_chunks(self) -> dict[str, tuple[Run, ...]]:
        """Return the chunks of the first training seed, whose attention is shown and measured."""
        return chunks(self.folds)

    @property
    def models(self) -> tuple[str, ...]:
        """Return the heads, followed by their names under the published protocol if configured."""
        heads = tuple(self.config.heads)
        # A fitted head needs a tuning set, which that protocol lacks.
        trained = (name for name, head in self.config.heads.items() if head.trained_by_gradient)
        twins = tuple(f"{name}{PUBLISHED}" for name in trained)
        return heads + twins if self.config.published_protocol else heads

    def tile_files(self, bucket: str) -> list[str]:
        """Return the files that tiling a bucket reads: slides, annotations and masks."""
        masks = self.config.cohort.tissue_masks
        found = []
        for row in self.by_bucket[bucket]:
            found += [
                *self.slide_files(row),
                self.cohort.annotation_file(row),
                self.cohort.mask_file(row, masks),
            ]
        return list(dict.fromkeys(str(path) for path in found if path is not None))

    def slide_files(self, row: SlideRow) -> list[Path]:
        """Return the files of a slide; none if it is absent."""
        slide = self.cohort.present_file(row)
        return [] if slide is None else list(planned_files(slide))

    @cached_property
    def matched(self) -> dict[str, MatchedFiles]:
        """Return encoder -> the feature files of the slides, of those computed elsewhere.

        Raises:
            UserError: a folder cannot be read.
        """
        return {
            name: match_slides(self.cohort, section.path, section.format)
            for name, section in self.config.given.items()
        }

    def given_files(self, name: str) -> list[str]:
        """Return the feature files of all slides for an encoder computed elsewhere."""
        return sorted(map(str, self.matched[name].files.values()))

    def taken_files(self, name: str, bucket: str) -> list[str]:
        """Return what taking a bucket in reads: feature files, and slides that are there."""
        files = self.matched[name].files
        found: list[Path] = []
        for row in self.by_bucket[bucket]:
            found += [files[row.slide_id]] if row.slide_id in files else []
            found += self.slide_files(row)
        return list(dict.fromkeys(map(str, found)))

    @cached_property
    def local_weights(self) -> dict[str, list[str]]:
        """Return encoder -> the local file of its weights, if it has one.

        Raises:
            UserError: the file does not exist.
        """
        found = {name: e.local_weights() for name, e in self.config.encoders.items()}
        return {name: [str(path)] if path else [] for name, path in found.items()}

    @property
    def segmenters(self) -> dict[str, Segmenter]:
        """Return folder of the weights -> segmenter, of those that the config names."""
        return {one.folder: one for one in chosen(self.config.tiling) if self.config.grids}

    def patch_source(self, name: str) -> str:
        """Return the table or folder of the patch set that an encoder is pre-trained on."""
        return str(self.config.patches[self.config.encoders[name].data or ""].path)

    def encoder_files(self, name: str) -> list[str]:
        """Return the files that an encoder is made from: local weights, or labelled patches."""
        if name in self.config.given:
            return []
        if self.config.encoders[name].source != "pretrain":
            return self.local_weights[name]
        if self.config.cohort.synthetic:
            return [self.patch_source(name)]
        return patch_files(self.config.patches[self.config.encoders[name].data or ""])

    def drawn(self, files: list[str]) -> list[str]:
        """Return which of the files that a job reads are inputs of its rule: those that rules draw.

        Users' files are none, see `her2.config.jobs`.
        """
        return files if self.config.cohort.synthetic else []

    def state(self, files: list[str]) -> str:
        """Return the state of users' files for a spec, empty where rules draw the files."""
        if self.config.cohort.synthetic:
            return ""
        return files_state(map(Path, files), self.cohort.root)

    def starts_from(self, name: str) -> list[str]:
        """Return the encoder of the config that another one starts from, if any."""
        init = self.config.encoders[name].init
        return [init] if init not in (None, "random", "published") else []

    @cached_property
    def truth_files(self) -> list[str]:
        """Return the ground truths in `cohort.masks`; rules draw those of the demo."""
        folder = self.config.cohort.masks
        if folder is None:
            return []
        drawn = self.cohort.root / "masks"
        if self.config.cohort.synthetic and folder.absolute() == drawn.absolute():
            return [f"{drawn}/{row.slide_id}.png" for row in self.cohort.rows]
        # One listing, since asking for every name of every slide is slow on a shared disk.
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        names = [f"{row.slide_id}{suffix}" for row in self.cohort.rows for suffix in TRUTH_SUFFIXES]
        return [str(folder / name) for name in names if name in there]
