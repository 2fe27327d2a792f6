"""Before every stage: which jobs a config and a cohort make, and the spec of each.

The Snakefile asks a `Plan` for names and specs and does no more itself. Imports nothing heavy,
writes nothing and reads nothing, since it runs at parse time in every job; only `Plan.tile_files`,
asked for jobs that tile, looks up which files a slide consists of.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from her2.cohort.columns import columns_read_by
from her2.cohort.manifest import TRUTH_SUFFIXES, Cohort, SlideRow
from her2.config import Config, FoldsSection, jobs
from her2.config.names import PUBLISHED, chunks, split_protocol
from her2.core.errors import SlideError, UserError
from her2.slides.backends import slide_files

DEMO_SIDE_PX = 2880
"""Width and height of the demo's slides at 0.5 um/px: 15 tiles of 96 um, half of them tissue. A
float32 image of this size stays below the 32 MiB above which glibc asks the kernel for new memory
every time, which took as long as the drawing."""

DEMO_PATCHES = {"he": 300, "ihc": 225, "natural": 150}
"""Patches per class of the demo's sets: 900 each, small enough to learn from in a minute."""


@dataclass(frozen=True)
class Plan:
    """A config and the cohort it names."""

    config: Config
    cohort: Cohort

    @cached_property
    def by_bucket(self) -> dict[str, tuple[SlideRow, ...]]:
        """Bucket name -> its slides."""
        return self.cohort.buckets(self.config.cohort.slides_per_bucket)

    @property
    def buckets(self) -> tuple[str, ...]:
        """Bucket names, sorted."""
        return tuple(self.by_bucket)

    @cached_property
    def slides(self) -> dict[str, SlideRow]:
        """Slide id -> row."""
        return {row.slide_id: row for row in self.cohort.rows}

    @cached_property
    def split(self) -> bool:
        """Whether the manifest's column `split` stands in the place of cross-validation."""
        if self.config.folds.split == "ignore" or not any(row.split for row in self.cohort.rows):
            return False
        if self.config.published_protocol:
            raise UserError(
                "published_protocol: true splits slides at random, and the manifest has a column "
                "'split'; set folds.split: ignore, or published_protocol: false."
            )
        return True

    @cached_property
    def folds(self) -> FoldsSection:
        """What `folds` of the config comes to on this cohort.

        Raises:
            UserError: `leave_one_out` with another number of folds than there are sites.
        """
        section = self.config.folds
        if self.split:
            # One fold, of one repeat; only parsing refuses such a number.
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
    def chunks(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Chunk name -> the (repeat, fold) pairs that one training job takes."""
        return chunks(self.folds)

    @property
    def labels(self) -> tuple[str, ...]:
        """The manifest's columns that some task reads, sorted."""
        return tuple(sorted({task.label for task in self.config.tasks.values()}))

    @cached_property
    def synthetic_specs(self) -> dict[str, str]:
        """Bucket -> spec of drawing its demo slides.

        Raises:
            UserError: slides without a score; all of them are named.
        """
        if unscored := [row.slide_id for row in self.cohort.rows if "her2" not in row.labels]:
            raise UserError(
                f"{', '.join(unscored)}: a synthetic slide is drawn from its score; fill the "
                "column 'her2', or set `cohort.synthetic: false`."
            )
        return {
            bucket: jobs.dump(
                jobs.SyntheticSpec(
                    slides=tuple(
                        jobs.SyntheticSlide(
                            slide_id=row.slide_id,
                            patient_id=row.patient_id,
                            her2=row.labels["her2"],
                            site=row.site or "",
                        )
                        for row in rows
                    ),
                    side_px=DEMO_SIDE_PX,
                    seed=self.config.seed,
                )
            )
            for bucket, rows in self.by_bucket.items()
        }

    def tile_spec(self, grid: str, bucket: str) -> str:
        """Spec of tiling one bucket on one grid."""
        mpp, size = self.config.grids[grid]
        return jobs.dump(
            jobs.TileSpec(
                bucket=bucket,
                rows=self.cohort.digest(self.by_bucket[bucket], columns_read_by("tile")),
                mpp=mpp,
                size=size,
                tiling=self.config.tiling,
                seed=None if self.config.tiling.max_tiles is None else self.config.seed,
            )
        )

    def tile_files(self, bucket: str) -> list[str]:
        """What tiling a bucket reads: its slides, their annotations and masks."""
        masks = self.config.cohort.tissue_masks
        found = []
        for row in self.by_bucket[bucket]:
            found += [
                *_slide_files(self.cohort.file(row)),
                self.cohort.annotation_file(row),
                self.cohort.mask_file(row, masks),
            ]
        return list(dict.fromkeys(str(path) for path in found if path is not None))

    def audit_spec(self) -> str:
        """Spec of the checks of the whole cohort."""
        columns = (*columns_read_by("audit"), *self.labels)
        return jobs.dump(
            jobs.AuditSpec(
                rows=self.cohort.digest(self.cohort.rows, columns),
                buckets=self.buckets,
                grids=tuple(sorted(self.config.grids)),
                labels=self.labels,
                max_excluded=self.config.cohort.max_excluded,
            )
        )

    def cohort_spec(self) -> str:
        """Spec of the table of the whole cohort."""
        columns = (*columns_read_by("cohort"), *self.labels)
        return jobs.dump(
            jobs.CohortSpec(
                rows=self.cohort.digest(self.cohort.rows, columns),
                buckets=self.buckets,
                grids=tuple(sorted(self.config.grids)),
                labels=self.labels,
            )
        )

    def encoder_spec(self, name: str) -> str:
        """Spec of materialising one encoder."""
        encoder = self.config.encoders[name]
        trained = encoder.source == "pretrain"
        return jobs.dump(
            jobs.EncoderSpec(
                # What is only said about an encoder does not make it another one.
                encoder=encoder.model_copy(update={"domain": "none", "allow_overlap": False}),
                patches=self.config.patches[encoder.data] if trained and encoder.data else None,
                pretraining=self.config.pretraining if trained else None,
                seed=self.config.seed,
            )
        )

    @cached_property
    def local_weights(self) -> dict[str, list[str]]:
        """Encoder -> the local file that its weights are read from, if they are.

        Raises:
            UserError: there is no such file.
        """
        found = {name: e.local_weights() for name, e in self.config.encoders.items()}
        return {name: [str(path)] if path else [] for name, path in found.items()}

    def patch_source(self, name: str) -> str:
        """The table or folder of the patch set that an encoder is pre-trained on."""
        return str(self.config.patches[self.config.encoders[name].data or ""].path)

    def begins_from(self, name: str) -> list[str]:
        """The encoder whose weights another one begins from, if it is one of the config's."""
        init = self.config.encoders[name].init
        return [init] if init not in (None, "random", "published") else []

    def overlap_spec(self, name: str) -> str:
        """Spec of the overlap audit of one encoder."""
        encoder = self.config.encoders[name]
        return jobs.dump(
            jobs.OverlapSpec(domain=encoder.domain or "none", allow_overlap=encoder.allow_overlap)
        )

    def patches_spec(self, kind: str) -> str:
        """Spec of drawing one patch set of the demo."""
        return jobs.dump(
            jobs.PatchesSpec.model_validate(
                {
                    "kind": kind,
                    "n_per_class": DEMO_PATCHES[kind],
                    "size_px": 96,
                    "mpp": 1.0,
                    "seed": self.config.seed,
                }
            )
        )

    def embed_spec(self, bucket: str) -> str:
        """Spec of embedding one bucket; the encoder itself comes as a file."""
        return jobs.dump(
            jobs.EmbedSpec(
                bucket=bucket,
                rows=self._rows(bucket),
                max_failed_tiles=self.config.embedding.max_failed_tiles,
            )
        )

    @property
    def models(self) -> tuple[str, ...]:
        """The heads, and where the config asks for it each once more under the published
        protocol, which shows in its name."""
        heads = tuple(self.config.heads)
        # A fitted head is picked by the tuning set, which that protocol has not.
        trained = (name for name, head in self.config.heads.items() if head.trained_by_gradient)
        twins = tuple(f"{name}{PUBLISHED}" for name in trained)
        return heads + twins if self.config.published_protocol else heads

    def folds_spec(self, name: str) -> str:
        """Spec of the folds of one task (with the suffix: under the published protocol)."""
        task, protocol = split_protocol(name)
        columns = [*columns_read_by("folds"), self.config.tasks[task].label]
        sites = "ignored" if self.split or protocol == "published" else self.folds.sites
        columns += ["split"] if self.split else ["site"] if sites != "ignored" else []
        folds_seed = self.config.folds.seed
        return jobs.dump(
            jobs.FoldsSpec(
                rows=self.cohort.digest(self.cohort.rows, columns),
                task=self.config.tasks[task],
                protocol=protocol,
                folds=self.folds.number,
                repeats=self.folds.repeats,
                tune=self.folds.tune,
                sites=sites,
                split=self.split,
                seed=self.config.seed if folds_seed is None else folds_seed,
            )
        )

    def similar_spec(self) -> str:
        """Spec of the search for near-identical slides; the encoder's features come as files."""
        return jobs.dump(
            jobs.SimilarSpec(
                buckets=self.buckets, max_shared_tiles=self.config.folds.max_shared_tiles
            )
        )

    def train_spec(self, task: str, model: str, chunk: str) -> str:
        """Spec of training one chunk of folds."""
        head, protocol = split_protocol(model)
        return jobs.dump(
            jobs.TrainSpec(
                task=self.config.tasks[task],
                head=self.config.heads[head],
                training=self.config.training,
                protocol=protocol,
                runs=self.chunks[chunk],
                buckets=self.buckets,
                max_excluded=self.config.cohort.max_excluded,
                seed=self.config.seed,
            )
        )

    def evaluate_spec(self, task: str, model: str) -> str:
        """Spec of evaluating one encoder and head on a task."""
        return jobs.dump(
            jobs.EvaluateSpec(
                task=self.config.tasks[task],
                protocol=split_protocol(model)[1],
                chunks=tuple(self.chunks),
                evaluation=self.config.evaluation,
                seed=self.config.seed,
            )
        )

    def compare_spec(self, task: str) -> str:
        """Spec of comparing all encoders, and all heads, on a task."""
        return jobs.dump(
            jobs.CompareSpec(
                task=self.config.tasks[task],
                encoders=tuple(self.config.encoders),
                domains={name: e.domain or "none" for name, e in self.config.encoders.items()},
                heads=tuple(self.config.heads),
                evaluation=self.config.evaluation,
                seed=self.config.seed,
            )
        )

    def control_spec(self, task: str, encoder: str) -> str:
        """Spec of the controls of one encoder and head on a task."""
        return jobs.dump(
            jobs.ControlSpec(
                task=self.config.tasks[task],
                grid=self.config.encoders[encoder].grid,
                evaluation=self.config.evaluation,
                seed=self.config.seed,
            )
        )

    def heatmap_spec(self, task: str) -> str:
        """Spec of the attention pictures of one encoder and head on a task."""
        return jobs.dump(
            jobs.HeatmapSpec(
                task=self.config.tasks[task],
                chunks=tuple(self.chunks),
                buckets=self.buckets,
                slides=self.config.heatmaps.slides,
                formats=self.config.heatmaps.formats,
                mask_classes=self.config.cohort.mask_classes,
                annotation_origin=self.config.tiling.annotation_origin,
                seed=self.config.seed,
                synthetic=self.config.cohort.synthetic,
            )
        )

    def attention_spec(self, task: str) -> str:
        """Spec of measuring the attention of one encoder and head on a task."""
        section = self.config.evaluation
        return jobs.dump(
            jobs.AttentionSpec(
                task=self.config.tasks[task],
                chunks=tuple(self.chunks),
                buckets=self.buckets,
                mask_classes=self.config.cohort.mask_classes,
                annotation_origin=self.config.tiling.annotation_origin,
                faithfulness_slides=self.config.heatmaps.faithfulness_slides,
                bootstrap=section.bootstrap,
                confidence=section.confidence,
                seed=self.config.seed,
            )
        )

    @cached_property
    def truth_files(self) -> list[str]:
        """The ground truths in `cohort.masks`; the demo's are made by the rule of its slides."""
        folder = self.config.cohort.masks
        if folder is None:
            return []
        drawn = self.cohort.root / "masks"
        if self.config.cohort.synthetic and folder.absolute() == drawn.absolute():
            return [f"{drawn}/{row.slide_id}.png" for row in self.cohort.rows]
        # One listing: asking for every name of every slide takes long on a shared disk.
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        names = [f"{row.slide_id}{suffix}" for row in self.cohort.rows for suffix in TRUTH_SUFFIXES]
        return [str(folder / name) for name in names if name in there]

    def report_spec(self, software: str) -> str:
        """Spec of the report; `software` names the versions it ran with."""
        return jobs.dump(
            jobs.ReportSpec(
                config=self.config,
                buckets=self.buckets,
                software=software,
                chunks=tuple(self.chunks),
                split=self.split,
            )
        )

    def _rows(self, bucket: str) -> str:
        return self.cohort.digest(self.by_bucket[bucket], columns_read_by("embed"))


def _slide_files(path: Path) -> list[Path]:
    """A slide's files; its own alone where the others are unknown, which the job says of it."""
    try:
        return slide_files(path)
    except (OSError, SlideError):
        return [path]
