"""Stage 2, report: a draft of a paper's methods, with the numbers of this run.

What the run does not know is left to the author, as [author: ...]. The text is plain, and the page
escapes it. Works are cited by authors and year, and listed at the end.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from her2.config import EncoderSection, PatientLabel, PretrainingSection, TilingSection
from her2.filters.base import AreaFilter, TileFilter
from her2.filters.registry import LISTED
from her2.report.format import count, listed, percent, plural
from her2.report.results import Results, one_row_per_slide
from her2.report.sections import cohort as cohort_section
from her2.report.sections import flow, provenance
from her2.report.sections.headline import domain
from her2.report.sections.overlap import overlap_of
from her2.report.sections.paper import (
    methods_external,
    methods_figures,
    methods_given,
    methods_models,
    methods_robustness,
)
from her2.report.sections.paper.prose import paragraph
from her2.report.sections.paper.references import references
from her2.report.sections.paper.sample_size import sample_size
from her2.report.sections.patient_labels import decided
from her2.report.sections.pretraining import split_words
from her2.segmenters import NAMES as SEGMENTERS
from her2.segmenters import artefact_segmenter, class_filters, segmenter
from her2.segmenters.base import Segmenter

CITED = {
    "snakemake": "M\N{LATIN SMALL LETTER O WITH DIAERESIS}lder et al. 2021",
    "torch": "Paszke et al. 2019",
    "timm": "Wightman 2019",
    "openslide-bin": "Goode et al. 2013",
    "scikit-learn": "Pedregosa et al. 2011",
    "scipy": "Virtanen et al. 2020",
}
"""Package -> the work that its authors ask to cite."""


def methods(results: Results) -> list[str]:
    """Return the paragraphs, in the order of a paper."""
    parts = [
        paragraph("synthetic", _Synthetic(results.synthetic)),
        cohort(results),
        sample_size(results),
        tiles(results),
        encoders(results),
        methods_given.given(results),
        methods_models.models(results),
        methods_models.folds(results),
        methods_figures.statistics(results),
        methods_figures.comparison(results),
        methods_figures.controls(results),
        methods_robustness.robustness(results),
        methods_external.external(results),
        methods_figures.explanation(results),
        software(results),
    ]
    found = [part for part in parts if part]
    return [*found, references(found)]


@dataclass(frozen=True, slots=True)
class _Synthetic:
    synthetic: bool


@dataclass(frozen=True, slots=True)
class _TaskCohort:
    task_name: str
    label: str
    by_class: str


@dataclass(frozen=True, slots=True)
class _TwoClasses:
    """A task with the number of its patients whose slides have different classes."""

    task_name: str
    patients: int


@dataclass(frozen=True, slots=True)
class _Cohort:
    """Facts of the cohort paragraph; `sites` counts named sites, `without_site` slides."""

    synthetic: bool
    sites: int
    without_site: int
    who_is_in: list[str]
    before_exclusions: list[_TaskCohort]
    two_classes: list[_TwoClasses]
    rule: PatientLabel


def cohort(results: Results) -> str:
    """Describe the slides and patients, the exclusions, and who was evaluated."""
    table = one_row_per_slide(results)
    before = []
    for task in results.config.tasks:
        made = cohort_section.composition(results, task)
        counts = [patients for patients, _ in made.rows[-1].cells]
        before.append(_TaskCohort(task, made.label, _by_class(made.classes, counts)))
    return paragraph(
        "cohort",
        _Cohort(
            synthetic=results.synthetic,
            sites=table["site"].drop_nulls().n_unique(),
            without_site=table["site"].null_count(),
            who_is_in=[who_is_in(results, item) for item in flow.flows(results)],
            before_exclusions=before,
            two_classes=[
                _TwoClasses(name, len(found))
                for name in results.config.tasks
                if (found := decided(results, name))
            ],
            rule=results.config.cohort.patient_label,
        ),
    )


@dataclass(frozen=True, slots=True)
class _WhoIsIn:
    """Facts of a task's flow; `one_of_several` is true where the run has other encoders."""

    flow: flow.Flow
    one_of_several: bool
    lost: int
    reasons: list[str]
    evaluated: str


def who_is_in(results: Results, item: flow.Flow) -> str:
    """Describe a task's slides and patients, the exclusions, and who was evaluated."""
    return paragraph(
        "who_is_in",
        _WhoIsIn(
            flow=item,
            one_of_several=len(results.config.encoders) > 1,
            lost=sum(step.left for step in item.steps),
            reasons=[step.reason.replace("; ", ", ") for step in item.steps],
            evaluated=evaluated(results, item),
        ),
    )


def evaluated(results: Results, item: flow.Flow) -> str:
    """Return the evaluated patients of each class: `6 patients of 0, 1 of 1+ and 5 of 2+`."""
    model = next(
        model for model in results.task_models(item.task_name) if model.encoder == item.encoders[0]
    )
    targets = Counter(model.patients["target"].to_list())
    names = model.task.class_names
    return _by_class(names, [targets[index] for index in range(len(names))])


def _by_class(names: tuple[str, ...], counts: list[int]) -> str:
    pairs = list(zip(names, counts, strict=False))
    first = [f"{plural(counts[0], 'patient')} of {names[0]}"]
    return listed(first + [f"{count(n)} of {name}" for name, n in pairs[1:]])


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Facts of the tiles paragraph; limits and clauses come from filters that are in use."""

    tiling: TilingSection
    sizes: list[str]
    tissue_detected: bool
    tissue_from_masks: bool
    segmenters: list[str]
    annotated_slides: int
    artefact_limits: list[str]
    class_limits: list[str]
    class_network: str
    tile_clauses: list[str]
    grids: list[cohort_section.GridRow]


def tiles(results: Results) -> str:
    """Describe the tiling of slides; empty where no encoder reads slides."""
    if not results.config.needs_slides:
        return ""
    cut = results.config.grids
    tiling, table = results.config.tiling, results.cohort.filter(pl.col("grid").is_in(list(cut)))
    known = "tissue_source" in table.columns
    sources = set(table["tissue_source"].drop_nulls()) if known else set()
    segmented = {source for source in sources if source.startswith("segmenter ")}
    annotated = 0
    if "regions" in table.columns:
        annotated = table.filter(pl.col("regions").is_not_null())["slide_id"].n_unique()
    used = [(one, limit) for one in LISTED if (limit := one.limit_in(tiling)) < 1.0]
    learned = [
        (one, limit) for one in class_filters(tiling) if (limit := one.limit_in(tiling)) < 1.0
    ]
    network = (
        None if tiling.artefact_segmenter is None else artefact_segmenter(tiling.artefact_segmenter)
    )
    sizes = dict.fromkeys(
        f"{encoder.size} x {encoder.size} px at {encoder.mpp:g} um/px"
        for encoder in results.config.encoders.values()
        if isinstance(encoder, EncoderSection)
    )
    return paragraph(
        "tiles",
        _Tiles(
            tiling=tiling,
            sizes=list(sizes),
            tissue_detected=not sources or bool(sources - segmented - {"mask file"}),
            tissue_from_masks="mask file" in sources,
            segmenters=_segmenters(segmented),
            annotated_slides=annotated,
            artefact_limits=[
                f"{percent(limit)} {one.methods}"
                for one, limit in used
                if isinstance(one, AreaFilter)
            ],
            tile_clauses=[
                one.methods(one.chosen(tiling)) for one, _ in used if isinstance(one, TileFilter)
            ],
            class_limits=[f"{percent(limit)} {one.methods}" for one, limit in learned],
            class_network="" if network is None else _named(network),
            grids=[row for row in cohort_section.grid_rows(results) if row.grid in cut],
        ),
    )


def _segmenters(sources: Iterable[str]) -> list[str]:
    """Return the title and citation of each network that has found tissue."""
    by_source = ((f"segmenter {name},", segmenter(name)) for name in SEGMENTERS)
    return [
        _named(one)
        for begin, one in by_source
        if any(source.startswith(begin) for source in sources)
    ]


def _named(one: Segmenter) -> str:
    return f"{one.title} ({one.reference[0]})"


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Facts of one encoder; `images` is empty where it was trained on none.

    `patients_seen` counts patients of this cohort.
    """

    name: str
    architecture: str
    library: str
    features: int
    source: str
    model: str | None
    data: str | None
    images: str
    patients_seen: int
    overlap_unknown: bool
    precisions: list[str]
    weights_sha256: str
    augmentations: int


@dataclass(frozen=True, slots=True)
class _Pretrained:
    name: str
    classes: list[str]
    start: str
    split: str
    kept_epoch: int
    epochs: int


@dataclass(frozen=True, slots=True)
class _Encoders:
    encoders: list[_Encoder]
    pretrained: list[_Pretrained]
    pretraining: PretrainingSection
    seed: int


def encoders(results: Results) -> str:
    """Describe the encoders that were run, and the training of those pre-trained here."""
    if not results.config.needs_slides:
        return ""
    return paragraph(
        "encoders",
        _Encoders(
            encoders=[
                _encoder(results, n) for n, card in results.cards.items() if card.computed_here
            ],
            pretrained=[
                _pretrained(results, name)
                for name, card in results.cards.items()
                if card.source == "pretrain"
            ],
            pretraining=results.config.pretraining,
            seed=results.config.seed,
        ),
    )


def _encoder(results: Results, name: str) -> _Encoder:
    section, card = results.config.encoders[name], results.cards[name]
    images = {"none": "", "natural": "non-medical images"}.get(
        section.domain or "none", f"{domain(results, name)} images"
    )
    overlap = overlap_of(results, name)
    return _Encoder(
        name=name,
        architecture=card.architecture,
        library=card.library,
        features=card.dimension,
        source=section.source,
        model=section.model,
        data=section.data,
        images=images,
        patients_seen=len(overlap.patients) if overlap is not None else 0,
        overlap_unknown=overlap is not None and not overlap.known,
        precisions=[value for value in results.precisions[name] if value != "not recorded"],
        weights_sha256=card.weights_sha256,
        augmentations=section.augmentations,
    )


def _pretrained(results: Results, name: str) -> _Pretrained:
    facts = results.cards[name].provenance
    start = results.config.encoders[name].init
    return _Pretrained(
        name=name,
        classes=[f"{count(n)} {label}" for label, n in facts.get("classes", {}).items()],
        start=f"{start} weights" if start in ("random", "published") else f"the weights of {start}",
        split=split_words(str(facts["split_by"])),
        kept_epoch=int(facts["best"]["epoch"]) + 1,
        epochs=facts["epochs"],
    )


@dataclass(frozen=True, slots=True)
class _Software:
    packages: list[str]
    seed: int


def software(results: Results) -> str:
    """Name the packages that results depend on, with their versions."""
    named = [
        f"{name} {version}" + (f" ({CITED[name]})" if name in CITED else "")
        for name, version in provenance.versions(results.software)
    ]
    return paragraph("software", _Software(named, results.config.seed))
