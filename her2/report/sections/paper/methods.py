"""Stage 2, report: a draft of a paper's methods, with the numbers of this run.

What the run does not know is left to the author, as [author: ...]. The text is plain; the page
escapes it. Works are named by authors and year, and listed at the end.
"""

from collections import Counter

import polars as pl

from her2.report.format import count, listed, percent, plural
from her2.report.results import Results, one_row_a_slide
from her2.report.sections import cohort as cohort_section
from her2.report.sections import flow, provenance
from her2.report.sections.headline import domain
from her2.report.sections.overlap import overlap_of
from her2.report.sections.paper import methods_figures, methods_models
from her2.report.sections.paper.references import references
from her2.report.sections.pretraining import split_words


def methods(results: Results) -> list[str]:
    """The paragraphs, in the order of a paper."""
    parts = [
        _synthetic(results),
        cohort(results),
        tiles(results),
        _encoders(results),
        methods_models.models(results),
        methods_models.folds(results),
        methods_figures.statistics(results),
        methods_figures.comparison(results),
        methods_figures.controls(results),
        methods_figures.explanation(results),
        _software(results),
    ]
    found = [part for part in parts if part]
    return [*found, references(found)]


def _synthetic(results: Results) -> str:
    if not results.synthetic:
        return ""
    return (
        "All slides of this study are synthetic: they were drawn by a program and show nothing "
        "about patients."
    )


def cohort(results: Results) -> str:
    """Slides and patients, who is left out and why, and who is in the figures."""
    texts = [who_is_in(results, item) for item in flow.flows(results)]
    for task in results.config.tasks:
        made = cohort_section.composition(results, task)
        counts = [n for n, _ in made.rows[-1].cells]
        texts.append(
            f"Before exclusions the column {made.label} gave {_by_class(made.classes, counts)} "
            f"(task {task})."
        )
    asked = (
        ""
        if results.synthetic
        else " [author: source of the slides, dates, eligibility, staining and scanners, how HER2 "
        "was scored and by whom, ethics.]"
    )
    return f"Cohort.{asked}{_sites(results)} {' '.join(texts)}"


def who_is_in(results: Results, item: flow.Flow) -> str:
    """A task's slides and patients, who left and why, and who is in the figures."""
    who = f" ({listed(item.encoders)})" if len(results.config.encoders) > 1 else ""
    out = "; ".join(step.reason.replace("; ", ", ") for step in item.steps)
    lost = sum(step.left for step in item.steps)
    left = f"{plural(lost, 'slide')} {_was(lost)} not evaluated: {out}" if out else "all are in"
    return (
        f"Task {item.task_name}{who}: of {plural(item.slides, 'slide')} of "
        f"{plural(item.patients, 'patient')}, {left}. The figures are over "
        f"{plural(item.tested_slides, 'slide')} of {plural(item.tested_patients, 'patient')}: "
        f"{evaluated(results, item)}."
    )


def _sites(results: Results) -> str:
    table = one_row_a_slide(results)
    named = table["site"].drop_nulls()
    if not len(named):
        return ""
    lacking = len(table) - len(named)
    without = f"; {plural(lacking, 'slide')} {_was(lacking)} of no named site" if lacking else ""
    return f" The slides are from {plural(named.n_unique(), 'site')}{without}."


def evaluated(results: Results, item: flow.Flow) -> str:
    """The evaluated patients of each class: `6 patients of 0, 1 of 1+ and 5 of 2+`."""
    model = next(
        model for model in results.task_models(item.task_name) if model.encoder == item.encoders[0]
    )
    targets = Counter(model.patients["target"].to_list())
    names = model.task.class_names
    return _by_class(names, [targets[index] for index in range(len(names))])


def _by_class(names: tuple[str, ...], counts: list[int]) -> str:
    """`6 patients of 0, 1 of 1+ and 5 of 2+`."""
    pairs = list(zip(names, counts, strict=False))
    first = [f"{plural(counts[0], 'patient')} of {names[0]}"]
    return listed(first + [f"{count(n)} of {name}" for name, n in pairs[1:]])


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def tiles(results: Results) -> str:
    """How slides became tiles."""
    tiling = results.config.tiling
    sizes = dict.fromkeys(
        f"{encoder.size} x {encoder.size} px at {encoder.mpp:g} um/px"
        for encoder in results.config.encoders.values()
    )
    overlap = f", overlapping by {percent(tiling.overlap)}" if tiling.overlap else ""
    cap = f" At most {plural(tiling.max_tiles, 'tile')} of a slide {_was(tiling.max_tiles)} drawn" \
        " at random." if tiling.max_tiles else ""  # fmt: skip
    return (
        f"Tiles. Slides were cut into square tiles of {listed(tuple(sizes))}{overlap}; the scale "
        "was taken from each slide's own um/px; slides coarser than asked by more than a factor of "
        f"{tiling.max_enlargement:g} were excluded.{_tissue(results)} A tile was kept when at "
        f"least {percent(tiling.min_tissue)} of it was tissue{_artefacts(results)}; a slide with "
        f"fewer than {plural(tiling.min_tiles, 'tile')} was excluded.{cap}{_tile_counts(results)}"
    )


def _tissue(results: Results) -> str:
    """Where the tissue was known from, and whether only regions of it were used."""
    sources = set(results.cohort["tissue_source"].drop_nulls()) if (
        "tissue_source" in results.cohort.columns
    ) else set()  # fmt: skip
    found = []
    if sources - {"mask file"} or not sources:
        found.append(
            f"detected on an image of {results.config.tiling.thumbnail_mpp:g} um/px by its optical "
            "density against the slide's glass (after Ruifrok and Johnston 2001)"
        )
    if "mask file" in sources:
        found.append("taken from mask files of another program")
    text = f" Tissue was {' or '.join(found)}."
    if "regions" in results.cohort.columns:
        number = results.cohort.filter(pl.col("regions").is_not_null())["slide_id"].n_unique()
        if number:
            text += f" Of {plural(number, 'slide')} only annotated regions were used."
    return text


def _artefacts(results: Results) -> str:
    """The limits that reject a tile; a limit of 1 rejects none."""
    tiling = results.config.tiling
    limits = {
        "under pen": tiling.max_pen,
        "in a fold": tiling.max_fold,
        "in the scanner's border": tiling.max_border,
    }
    words = [f"{percent(limit)} {where}" for where, limit in limits.items() if limit < 1]
    text = f", at most {listed(words)}" if words else ""
    if tiling.max_blur < 1:
        step = (
            f"on one tile in a square of {tiling.blur_step_um:g} um and around blurred ones"
            if tiling.blur_step_um
            else "on every tile"
        )
        text += (
            f", and its perceived blur (Crete et al. 2007, measured {step}) was at most "
            f"{tiling.max_blur:g}"
        )
    return text


def _tile_counts(results: Results) -> str:
    rows = cohort_section.grid_rows(results)
    texts = []
    for row in rows:
        named = f" (grid {row.grid})" if len(rows) > 1 else ""
        noun = "tile" if row.tiles == "1" else "tiles"
        texts.append(
            f" This gave {row.tiles} {noun} on {plural(row.usable, 'slide')}{named}, "
            f"{row.tiles_median} a slide at the median; slides had {row.mpp} um/px."
        )
    return "".join(texts)


def _encoders(results: Results) -> str:
    texts = [
        f"{name} ({card.architecture} of {card.library}, {plural(card.dimension, 'feature')} a "
        f"tile, {_source(results, name)}, {_precision(results, name)}, weights SHA-256 "
        f"{card.weights_sha256[:12]}...)"
        for name, card in results.cards.items()
    ]
    who = "one frozen encoder" if len(texts) == 1 else f"each of {len(texts)} frozen encoders"
    return f"Encoders. Every tile was embedded once by {who}: {'; '.join(texts)}." + _made(results)


def _precision(results: Results, name: str) -> str:
    known = [value for value in results.precisions[name] if value != "not recorded"]
    return f"computed in {listed(known)}" if known else "precision not recorded"


def _source(results: Results, name: str) -> str:
    """Where an encoder's weights come from, what it saw, and whether that were these patients."""
    encoder = results.config.encoders[name]
    if encoder.source == "random":
        return "random weights, not trained on any image"
    words = domain(results, name)
    images = {"none": "", "natural": "non-medical images"}.get(
        encoder.domain or "none", f"{words} images"
    )
    where = {
        "pretrain": f"trained here on the patch set {encoder.data}",
        "checkpoint": "weights of a local file",
        "catalogue": f"published weights {encoder.model}",
    }.get(encoder.source, f"published weights {encoder.model}")
    seen = f"{where}, {images}" if encoder.source == "pretrain" else f"{where}, trained on {images}"
    text = seen if images else f"{where}, not trained on any image"
    found = overlap_of(results, name)
    if found is not None and found.patients:
        return f"{text}; its training saw {plural(len(found.patients), 'patient')} of this cohort"
    if found is not None and not found.known:
        return f"{text}; whether its training saw patients of this cohort is not known"
    return text


def _made(results: Results) -> str:
    """How the encoders that were pre-trained here were trained."""
    section = results.config.pretraining
    texts = []
    for name, card in results.cards.items():
        if card.source != "pretrain":
            continue
        facts = card.provenance
        classes = [f"{count(n)} {label}" for label, n in facts.get("classes", {}).items()]
        init = results.config.encoders[name].init
        begun = f"{init} weights" if init in ("random", "published") else f"those of {init}"
        texts.append(
            f" {name} was trained on {listed(classes)} patches, from {begun}; validation "
            f"patches were set apart {split_words(str(facts['split_by']))}; epoch "
            f"{int(facts['best']['epoch']) + 1} of {facts['epochs']} was kept."
        )
    if texts:
        texts.append(
            f" That training: AdamW (Loshchilov and Hutter 2019), learning rate "
            f"{section.learning_rate:g}, weight decay {section.weight_decay:g}, "
            f"{plural(section.batch_size, 'patch', 'patches')} a step, at most "
            f"{plural(section.epochs, 'epoch')}, seed {results.config.seed}."
        )
    return "".join(texts)


CITED = {
    "snakemake": "M\N{LATIN SMALL LETTER O WITH DIAERESIS}lder et al. 2021",
    "torch": "Paszke et al. 2019",
    "timm": "Wightman 2019",
    "openslide-bin": "Goode et al. 2013",
    "scikit-learn": "Pedregosa et al. 2011",
    "scipy": "Virtanen et al. 2020",
    "statsmodels": "Seabold and Perktold 2010",
}
"""Package -> the work that its authors ask to cite."""


def _software(results: Results) -> str:
    named = [
        f"{name} {version}" + (f" ({CITED[name]})" if name in CITED else "")
        for name, version in provenance.versions(results.software)
    ]
    return (
        f"Software. {listed(named)}, as installed where the report was made. Seed "
        f"{results.config.seed}. [author: hardware, availability of data, code and models.]"
    )
