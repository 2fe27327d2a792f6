"""Stage 2, report: a draft of a paper's methods, with the numbers of this run.

What the run does not know is left to the author, as [author: ...]. The text is plain; the page
escapes it.
"""

from collections import Counter

from her2.report import flow, slides
from her2.report.performance import domain, protocol
from her2.report.read import Results
from her2.report.text import count, percent, plural


def methods(results: Results) -> list[str]:
    """The paragraphs, in the order of a paper."""
    parts = [
        _synthetic(results),
        _cohort(results),
        tiles(results),
        _encoders(results),
        _models(results),
        _folds(results),
        _statistics(results),
        _comparison(results),
        _controls(results),
        _explanation(results),
        _software(results),
    ]
    return [part for part in parts if part]


def _synthetic(results: Results) -> str:
    if not results.synthetic:
        return ""
    return (
        "All slides of this study are synthetic: they were drawn by a program and show nothing "
        "about patients."
    )


def _cohort(results: Results) -> str:
    texts = []
    for item in flow.flows(results):
        who = f" ({listed(item.encoders)})" if len(results.config.encoders) > 1 else ""
        out = "; ".join(step.reason for step in item.steps)
        texts.append(
            f"For the task {item.task_name}{who}, of {plural(item.slides, 'slide')} of "
            f"{plural(item.patients, 'patient')} "
            + (f"these were not evaluated: {out}. " if out else "none was left out. ")
            + f"The figures are over {plural(item.tested_slides, 'slide')} of "
            f"{plural(item.tested_patients, 'patient')}."
        )
    classes = []
    for task in results.config.tasks:
        made = slides.composition(results, task)
        whole = made.rows[-1].cells
        counts = [f"{name}: {n}" for name, (n, _) in zip(made.classes, whole, strict=False)]
        classes.append(f"Patients by class ({task}): {', '.join(counts)}.")
    return (
        "Cohort. [author: source of the slides, dates, eligibility, staining and scanners, how "
        f"HER2 was scored and by whom, ethics.] {' '.join(texts)} {' '.join(classes)}"
    )


def tiles(results: Results) -> str:
    """How slides became tiles."""
    tiling = results.config.tiling
    sizes = dict.fromkeys(
        f"{encoder.size} x {encoder.size} px at {encoder.mpp:g} um/px"
        for encoder in results.config.encoders.values()
    )
    overlap = f", overlapping by {percent(tiling.overlap)}" if tiling.overlap else ""
    cap = f" At most {count(tiling.max_tiles)} tiles of a slide were drawn at random." if (
        tiling.max_tiles
    ) else ""  # fmt: skip
    return (
        f"Tiles. Slides were cut into square tiles of {listed(tuple(sizes))}{overlap}; the scale "
        "was taken from each slide's own um/px. A tile was kept when at least "
        f"{percent(tiling.min_tissue)} of it was tissue and pen, folds, the scanner's border and "
        "blur stayed within their limits; a slide with fewer than "
        f"{plural(tiling.min_tiles, 'tile')} was excluded.{cap}"
    )


def _encoders(results: Results) -> str:
    texts = [
        f"{name} ({card.library} {card.architecture}, {card.dimension} features a tile, "
        f"{_source(results, name)}, weights "
        f"SHA-256 {card.weights_sha256[:12]}...)"
        for name, card in results.cards.items()
    ]
    return (
        "Encoders. Every tile was embedded once by each of "
        f"{plural(len(texts), 'frozen encoder')}: "
        f"{'; '.join(texts)}."
    )


def _source(results: Results, name: str) -> str:
    """What an encoder saw, and where its weights come from."""
    encoder = results.config.encoders[name]
    if encoder.source == "random":
        return "random weights"
    words = domain(results, name)
    images = "non-medical images" if words == "non-medical" else f"{words} images"
    if encoder.source == "pretrain":
        return f"trained here on {images}, the patch set {encoder.data}"
    return f"published weights {encoder.model}, trained on {images}"


def _models(results: Results) -> str:
    training = results.config.training
    heads = "; ".join(
        f"{name} ({head.head}, "
        + ", ".join(f"{key} {value}" for key, value in head.model_dump(mode="json").items()
                    if key not in ("head", "search") and value is not None)
        + ")"
        for name, head in results.config.heads.items()
    )  # fmt: skip
    chosen = {
        "loss": "the lowest cross-entropy",
        "macro_auc": "the highest macro AUC",
        "balanced_accuracy": "the highest balanced accuracy",
        "quadratic_kappa": "the highest quadratic weighted kappa",
    }[training.select]
    return (
        "Models. A slide's features were a bag of multiple-instance learning; heads: "
        f"{heads}. Training: {training.optimiser}, learning rate {training.learning_rate:g}, "
        f"weight decay {training.weight_decay:g}, bags of {plural(training.bag_size, 'tile')}, "
        f"{plural(training.bags_per_batch, 'slide')} a step, at most "
        f"{plural(training.epochs, 'epoch')}, stopping after {training.patience} without a better "
        f"one. The epoch with {chosen} on the tune part was kept. Predictions used all tiles."
    )


def _folds(results: Results) -> str:
    section = results.config.folds
    tune = "" if results.split else (
        f" Of the patients outside a test part {percent(section.tune)} were the tune part, which "
        "picked the epoch, the temperature and the thresholds; no choice was made on a test part."
    )  # fmt: skip
    searched = max(
        (entry.trials for model in results.models for entry in model.folds.values()), default=1
    )
    search = f" Options of heads were searched ({searched} trials) inside each fold." if (
        searched > 1
    ) else ""  # fmt: skip
    seed = results.config.seed if section.seed is None else section.seed
    return (
        f"Validation. {_first_up(protocol(results))}; all slides of a patient were in one part"
        f"{'' if results.split else f' and classes were stratified (seed {seed})'}.{tune}{search}"
    )


def _statistics(results: Results) -> str:
    section = results.config.evaluation
    level = f"{100 * section.confidence:g} %"
    return (
        "Statistics. Probabilities of a patient's slides (and of repeats) were averaged and the "
        "test parts pooled. AUC is one score against the rest; the macro AUC is the unweighted "
        f"mean over scores. {level} intervals are expanded percentiles (Hesterberg 2015) of "
        f"{count(section.bootstrap)} bootstrap resamples of patients, stratified by "
        f"class (seed {results.config.seed}). For "
        "scores in two groups DeLong's interval is given too (DeLong 1988, on the logit scale). "
        "Calibration was measured by the expected calibration error (10 bins), Brier score and log "
        "loss, before and after a temperature fitted on the tune part of each fold (Guo 2017); "
        "thresholds for a sensitivity of "
        f"{percent(section.sensitivity)} or a specificity of {percent(section.specificity)} came "
        "from the tune parts. Net benefit follows Vickers and Elkin (2006). A figure that is not "
        "defined is reported as such."
    )


def _comparison(results: Results) -> str:
    if not results.comparisons:
        return ""
    kinds = Counter(
        kind for table in results.comparisons.values() for kind in table["kind"].unique()
    )
    what = listed(tuple(kind for kind in ("encoders", "heads") if kinds[kind]))
    return (
        f"Comparison. Pairs of {what} were compared on identical patients and folds by the paired "
        "patient bootstrap, scores in two groups also by DeLong's paired test; p values are "
        "two-sided and corrected by Holm within each family of tests."
    )


def _controls(results: Results) -> str:
    permutations = max(
        (
            row["permutations"] or 0
            for model in results.models
            for row in model.controls["shuffled"].to_dicts()
        ),
        default=0,
    )
    return (
        "Controls. A logistic regression on covariates alone (what is known of a slide without "
        "how its tissue looks: "
        f"{listed(_covariates(results)) or 'none varied here'}) was cross-validated in the same "
        f"folds. Labels were shuffled within the test folds {count(permutations)} times. AUC is "
        "also given by site, by scanner and by amount of tissue, where known."
    )


def _covariates(results: Results) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for model in results.models:
        for row in model.controls["inputs"].to_dicts():
            if row["used"]:
                names[str(row["covariate"])] = None
    return tuple(names)


def _explanation(results: Results) -> str:
    text = (
        "Explanation. Attention of a slide is that of the model that never saw its patient. "
        "Faithfulness compares the predicted probability while tiles are removed or put in by "
        "attention with random order."
    )
    located = max((len(model.attention["localisation"]) for model in results.models), default=0)
    if located:
        truth = "planted morphology" if results.synthetic else "annotated areas"
        text += f" Localisation was measured against {truth} of {plural(located, 'slide')}."
    return text + " Attention is not HER2 staining."


def _software(results: Results) -> str:
    return (
        f"Software. her2 {results.software} (Snakemake, PyTorch, timm, OpenSlide, Zarr, "
        f"scikit-learn, SciPy, statsmodels; versions in the provenance); seed "
        f"{results.config.seed}. [author: hardware, availability of data, code and models.]"
    )


def listed(names: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]
