"""Before every stage: the spec of each job that a config and a cohort give.

The Snakefile asks a `Plan` for names and specs and does no more itself. A spec is all that its job
depends on besides its input files, as one string.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from her2.cohort.columns import columns_read_by, further_columns
from her2.config import EncoderSection, EvaluationSection, jobs
from her2.config.names import DEVELOPMENT, split_protocol
from her2.core.errors import UserError
from her2.core.files import digest
from her2.core.stamps import files_state
from her2.pipeline.layout import Layout
from her2.segmenters.base import ArtefactSegmenter

DEMO_SIDE_PX = 2496
"""Width and height of the demo's slides at 0.5 um/px: 13 tiles of 96 um, half of them tissue. A
float32 image of this size stays below the 32 MiB above which glibc asks the kernel for new memory
every time, which took as long as the drawing."""

DEMO_PATCHES = {"he": 300, "ihc": 225, "natural": 150}
"""Patches per class of the demo's sets: 900 each, small enough to learn from in a minute."""


@dataclass(frozen=True)
class Plan(Layout):
    """A layout with the spec of each of its jobs.

    `external` has the plans of the external cohorts by name, for the jobs that each cohort has:
    tiling, embedding and their checks. Their `config` has the cohort as its `cohort`, and as tasks
    those for which it has labels.
    """

    external: Mapping[str, "Plan"] = field(default_factory=dict)

    def of(self, part: str) -> "Plan":
        """Return the plan of the cohort with a folder in the results."""
        return self if part == DEVELOPMENT else self.external[Path(part).name]

    @property
    def cohorts(self) -> tuple["Plan", ...]:
        """Return the plans of all cohorts, that of the development first."""
        return self, *self.external.values()

    @cached_property
    def synthetic_specs(self) -> dict[str, str]:
        """Return bucket -> spec of drawing its demo slides.

        Raises:
            UserError: slides have no score; all of them are named.
        """
        if unscored := [row.slide_id for row in self.cohort.rows if "her2" not in row.labels]:
            raise UserError(
                f"{', '.join(unscored)}: a synthetic slide is drawn from its score. Fill the "
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
        """Return the spec of tiling one bucket on one grid."""
        mpp, size = self.config.grids[grid]
        return jobs.dump(
            jobs.TileSpec(
                bucket=bucket,
                rows=self.cohort.digest(self.by_bucket[bucket], columns_read_by("tile")),
                mpp=mpp,
                size=size,
                tiling=self.config.tiling.as_tiled,
                seed=None if self.config.tiling.max_tiles is None else self.config.seed,
                files=self.state(self.tile_files(bucket)),
            )
        )

    def segmenter_spec(self, folder: str) -> str:
        """Return the spec of fetching the weights of a segmenter into a folder of that name."""
        one, tiling = self.segmenters[folder], self.config.tiling
        weights: Path | None = getattr(tiling, one.path_key)
        return jobs.dump(
            jobs.SegmenterSpec(
                segmenter=one.name,
                artefacts=isinstance(one, ArtefactSegmenter),
                weights=weights,
                sha256=getattr(tiling, one.digest_key),
                files="" if weights is None else files_state([weights], self.cohort.root),
            )
        )

    def audit_spec(self) -> str:
        """Return the spec of the checks of the whole cohort."""
        # Only folds read labels there, so that a corrected external one predicts nothing again.
        labels = self.labels if self.part == DEVELOPMENT else ()
        columns = (*columns_read_by("audit"), *labels)
        return jobs.dump(
            jobs.AuditSpec(
                rows=self.cohort.digest(self.cohort.rows, columns),
                buckets=self.buckets,
                grids=tuple(sorted(self.config.all_grids)),
                labels=labels,
                max_excluded=self.config.cohort.max_excluded,
            )
        )

    def cohort_spec(self) -> str:
        """Return the spec of the table of the whole cohort."""
        columns = (*columns_read_by("cohort"), *self.labels)
        further = further_columns(self.config.evaluation.columns, self.labels)
        return jobs.dump(
            jobs.CohortSpec(
                rows=self.cohort.digest(self.cohort.rows, {*columns, *further}),
                buckets=self.buckets,
                grids=tuple(sorted(self.config.all_grids)),
                labels=self.labels,
                columns=further,
            )
        )

    def encoder_spec(self, name: str) -> str:
        """Return the spec of materialising one encoder."""
        encoder = self.config.encoders[name]
        assert isinstance(encoder, EncoderSection)
        trained = encoder.source == "pretrain"
        return jobs.dump(
            jobs.EncoderSpec(
                encoder=encoder.alone,
                patches=self.config.patches[encoder.data] if trained and encoder.data else None,
                pretraining=self.config.pretraining if trained else None,
                seed=self.config.seed,
                files=self.state(self.encoder_files(name)),
            )
        )

    def overlap_spec(self, name: str) -> str:
        """Return the spec of the overlap audit of one encoder."""
        encoder = self.config.encoders[name]
        return jobs.dump(
            jobs.OverlapSpec(
                domain=encoder.domain or "none",
                allow_overlap=encoder.allow_overlap,
                cohort=Path(self.part).name,
            )
        )

    def patches_spec(self, kind: str) -> str:
        """Return the spec of drawing one patch set of the demo."""
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

    def embed_spec(self, encoder: str, bucket: str) -> str:
        """Return the spec of embedding one bucket; the encoder itself comes as a file.

        Augmented views are for training, so external cohorts have none.
        """
        views = self.config.encoders[encoder].augmentations if self.part == DEVELOPMENT else 0
        return jobs.dump(
            jobs.EmbedSpec(
                bucket=bucket,
                rows=self._rows(bucket),
                max_failed_tiles=self.config.embedding.max_failed_tiles,
                views=views,
                seed=self.config.seed if views else 0,
            )
        )

    def describe_spec(self, name: str) -> str:
        """Return the spec of the card of features that another program computed."""
        section = self.config.given[name]
        return jobs.dump(
            jobs.DescribeSpec(
                identity=section.identity,
                format=section.format,
                mpp=section.mpp,
                size=section.size,
                files=files_state(map(Path, self.given_files(name)), self.cohort.root),
            )
        )

    def take_spec(self, name: str, bucket: str) -> str:
        """Return the spec of taking one bucket's features; their card comes as a file."""
        section = self.config.given[name]
        return jobs.dump(
            jobs.TakeSpec(
                bucket=bucket,
                rows=self.cohort.digest(self.by_bucket[bucket], columns_read_by("take")),
                format=section.format,
                mpp=section.mpp,
                size=section.size,
                min_tiles=self.config.tiling.min_tiles,
                files=files_state(map(Path, self.taken_files(name, bucket)), self.cohort.root),
            )
        )

    def folds_spec(self, name: str) -> str:
        """Return the spec of the folds of one task, also under the published protocol."""
        task_name, protocol = split_protocol(name)
        task = self.config.tasks[task_name]
        columns = [*columns_read_by("folds"), task.label]
        sites = "ignored" if self.split or protocol == "published" else self.folds.sites
        columns += ["split"] if self.split else ["site"] if sites != "ignored" else []
        folds_seed = self.config.folds.seed
        rows, conflicts = self.cohort.digest(self.cohort.rows, columns), self.cohort.conflicts(task)
        rule = self.config.cohort.patient_label if conflicts else "refuse"
        if rule == "first":  # the only thing that depends on the order of the manifest
            rows = digest([rows, [conflict.labels[0][0] for conflict in conflicts]])
        return jobs.dump(
            jobs.FoldsSpec(
                rows=rows,
                task=task,
                protocol=protocol,
                folds=self.folds.number,
                repeats=self.folds.repeats,
                tune=self.folds.tune,
                sites=sites,
                split=self.split,
                patient_label=rule,
                seed=self.config.seed if folds_seed is None else folds_seed,
            )
        )

    def similar_spec(self) -> str:
        """Return the spec of the search for similar slides; the features come as files."""
        return jobs.dump(
            jobs.SimilarSpec(
                buckets=self.buckets, max_shared_tiles=self.config.folds.max_shared_tiles
            )
        )

    def train_spec(self, task: str, model: str, chunk: str) -> str:
        """Return the spec of training one chunk of folds."""
        head, protocol = split_protocol(model)
        return jobs.dump(
            jobs.TrainSpec(
                task=self.config.tasks[task],
                head=self.config.heads[head],
                training=self.config.training.of_one_model,
                protocol=protocol,
                runs=self.chunks[chunk],
                buckets=self.buckets,
                max_excluded=self.config.cohort.max_excluded,
                seed=self.config.seed,
            )
        )

    @property
    def _of_one_model(self) -> EvaluationSection:
        """The `evaluation` section for a job on one model, which `selection` does not concern."""
        return self.config.evaluation.model_copy(update={"selection": "none"})

    def evaluate_spec(self, task: str, model: str) -> str:
        """Return the spec of evaluating one encoder and head on a task."""
        head, protocol = split_protocol(model)
        training = self.config.training
        return jobs.dump(
            jobs.EvaluateSpec(
                task=self.config.tasks[task],
                protocol=protocol,
                chunks=tuple(self.chunks),
                training=jobs.ClassBalance(
                    balance=training.balance,
                    label_smoothing=training.label_smoothing,
                    bags_per_batch=training.bags_per_batch,
                    fitted=not self.config.heads[head].trained_by_gradient,
                ),
                evaluation=self._of_one_model.without_columns,
                seed=self.config.seed,
            )
        )

    def compare_spec(self) -> str:
        """Return the spec of comparing all encoders, and all heads, on all tasks."""
        return jobs.dump(
            jobs.CompareSpec(
                tasks=self.config.tasks,
                encoders=tuple(self.config.encoders),
                domains={name: e.domain or "none" for name, e in self.config.encoders.items()},
                heads=tuple(self.config.heads),
                evaluation=self.config.evaluation.without_columns,
                seed=self.config.seed,
            )
        )

    def robustness_spec(self) -> str:
        """Return the spec of what the features of all encoders know beside the label."""
        return jobs.dump(
            jobs.RobustnessSpec(
                tasks=tuple(sorted(self.config.tasks)),
                encoders={name: encoder.grid for name, encoder in self.config.encoders.items()},
                buckets=self.buckets,
                confidence=self.config.evaluation.confidence,
                seed=self.config.seed,
            )
        )

    def control_spec(self, task: str, encoder: str) -> str:
        """Return the spec of the controls of one encoder and head on a task."""
        return jobs.dump(
            jobs.ControlSpec(
                task=self.config.tasks[task],
                grid=self.config.encoders[encoder].grid,
                evaluation=self._of_one_model,
                seed=self.config.seed,
            )
        )

    def heatmap_spec(self, task: str) -> str:
        """Return the spec of the attention pictures of one encoder and head on a task."""
        return jobs.dump(
            jobs.HeatmapSpec(
                task=self.config.tasks[task],
                chunks=tuple(self.first_chunks),
                buckets=self.buckets,
                slides=self.config.heatmaps.slides,
                formats=self.config.heatmaps.formats,
                mask_classes=self.config.cohort.mask_classes,
                annotation_origin=self.config.tiling.annotation_origin,
                seed=self.config.seed,
                synthetic=self.config.cohort.synthetic,
                files=self.state(self.truth_files),
            )
        )

    def attention_spec(self, task: str) -> str:
        """Return the spec of measuring the attention of one encoder and head on a task."""
        return jobs.dump(
            jobs.AttentionSpec(
                task=self.config.tasks[task],
                chunks=tuple(self.first_chunks),
                buckets=self.buckets,
                mask_classes=self.config.cohort.mask_classes,
                annotation_origin=self.config.tiling.annotation_origin,
                faithfulness_slides=self.config.heatmaps.faithfulness_slides,
                confidence=self.config.evaluation.confidence,
                seed=self.config.seed,
                files=self.state(self.truth_files),
            )
        )

    def report_spec(self, software: str) -> str:
        """Return the spec of the report; `software` names the versions it ran with."""
        return jobs.dump(
            jobs.ReportSpec(
                config=self.config,
                buckets=self.buckets,
                software=software,
                chunks=tuple(self.chunks),
                split=self.split,
                cautions=self.cohort.cautions,
                external={name: own.buckets for name, own in self.external.items()},
            )
        )

    def _rows(self, bucket: str) -> str:
        return self.cohort.digest(self.by_bucket[bucket], columns_read_by("embed"))
