"""The README of a bundle: a model card in the hub's form, made from what `bundle.json` says.

Every value comes from somebody's config or tables, so each is escaped: no name of a class or a site
can become a heading, a link or HTML.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from her2.frozen.bundle.schema import SCHEMA_NAME, Body, Figure
from her2.frozen.distribution import Distribution
from her2.metrics import all_metrics
from her2.segmenters import chosen

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

HUB_METRICS = {"auc": "roc_auc", "auprc": "average_precision", "brier": "brier_score"}
"""Name of a metric here -> its name on the hub; other names are their own."""
NOT_STATED = "not-stated"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SPECIAL = re.compile(r"([\\`*_\[\]#!|~$&<>])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_DECIMALS = 3
_LABELS = {
    "observed_expected": "Observed / expected",
    "slope": "Calibration slope",
    "intercept": "Calibration intercept",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
}
"""Words for figures that are no metrics of `her2.metrics`."""


def model_card(body: Body) -> str:
    """Return the model card: YAML for the hub, then Markdown for people."""
    from huggingface_hub import ModelCardData

    known = _LICENCE.fullmatch(body.licence) is not None
    tags = ["her2", "breast-cancer", "digital-pathology", "whole-slide-images",
            "multiple-instance-learning", *(["synthetic"] if body.synthetic else [])]  # fmt: skip
    hub = body.encoder.provenance.get("hub")
    headline = [one for one in _figures(body, ("metrics", "binary")) if one.value is not None]
    data = ModelCardData(
        model_name=_name(body),
        license=body.licence if known else "other",
        license_name=None if known else (body.licence or NOT_STATED),
        library_name="her2",
        pipeline_tag="image-classification",
        base_model=hub if isinstance(hub, str) else None,
        tags=tags,
        metrics=sorted({_hub_name(one.metric) for one in headline}) or None,
        eval_results=[_result(body, one) for one in headline] or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(body)}"


def escaped(value: str) -> str:
    """Return a text as Markdown that shows it as it is, on one line."""
    line = " ".join(value.split())
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found[1], f"\\{found[1]}"), line)


def _name(body: Body) -> str:
    return f"{body.task_name} / {body.encoder_name} / {body.head_name}"


def _level(body: Body) -> str:
    levels = {one.level for one in body.figures}
    return "slide" if levels == {"slide"} else "patient"


def _figures(body: Body, tables: Sequence[str]) -> list[Figure]:
    level = _level(body)
    return [one for one in body.figures if one.table in tables and one.level == level]


def _hub_name(metric: str) -> str:
    return HUB_METRICS.get(metric, metric)


def _label(metric: str) -> str:
    labels = {one.name: one.label for one in all_metrics()}
    return labels.get(metric) or _LABELS.get(metric, metric)


def _result(body: Body, one: Figure) -> "EvalResult":
    from huggingface_hub import EvalResult

    given = {"low": one.low, "high": one.high, "n": one.n, "note": one.note or None}
    arguments = {name: value for name, value in given.items() if value is not None}
    if one.low is not None:
        arguments["confidence"] = body.confidence
    drawn = " (synthetic slides)" if body.synthetic else ""
    return EvalResult(
        task_type="image-classification",
        task_name="HER2 from H&E slides",
        dataset_type="development-cohort",
        dataset_name=f"Development cohort, out of fold{drawn}",
        metric_type=_hub_name(one.metric),
        metric_value=one.value,
        metric_name=f"{_label(one.metric)}, {one.of or 'all classes'}, by {one.level}",
        metric_args=arguments or None,
    )


def _text(body: Body) -> str:
    parts = [
        _what(body),
        _use(body),
        _training_data(body),
        _figure_table(body),
        _limits(body),
        _technical(body),
    ]
    return "\n\n".join(parts) + "\n"


def _what(body: Body) -> str:
    classes = ", ".join(map(escaped, body.task.class_names))
    models = "one model, trained on all patients" if body.final == "refit" else (
        f"{len(body.folds)} models of a cross-validation, whose calibrated probabilities are "
        "averaged"
    )  # fmt: skip
    warning = (
        "\n\n> **Synthetic.** The slides of its development were drawn by a program. It knows\n"
        "> nothing of tissue, and no figure here says anything about patients."
        if body.synthetic
        else ""
    )
    return f"""# {escaped(_name(body))}{warning}

> **Not a medical device.** For research only: no output may be used to diagnose a patient or to
> choose a treatment. HER2 status is determined by immunohistochemistry and in situ hybridisation.

This model gives each whole-slide image of breast cancer, stained with haematoxylin and eosin, a
probability for each of the classes {classes} (`{body.task.label}`). It consists of the frozen
encoder {escaped(body.encoder.model)} and {models}."""


def _use(body: Body) -> str:
    return f"""## Intended use

Research on slides of invasive breast cancer, scanned at {body.grid.mpp:g} um/px or finer. Its use
on another hospital's slides has to be validated on labelled slides of that hospital first.

    her2 predict --bundle BUNDLE SLIDES --out predictions.csv
    her2 bundle check BUNDLE

## Out of scope

- Any decision about a patient, a replacement of HER2 staining, or a choice of whom to stain.
- Other organs, stains or preparations (cytology, frozen sections), and slides of other species.
- Slides unlike those of the development. `her2 predict` says for each slide where it lies outside
  of their range."""


def _training_data(body: Body) -> str:
    known = body.development
    groups = {"class": known.classes, "site": known.sites, "vendor": known.vendors}
    rows = [
        (what, one.name, str(one.patients), str(one.slides))
        for what, counts in groups.items()
        for one in counts
    ]
    numbers = [
        (f"{one.label} ({one.unit})" if one.unit else one.label, *_spread(one.distribution))
        for one in known.numbers
    ]
    return f"""## Training data

{known.patients} patients with {known.slides} slides. {len(body.hashes.patients)} of the patients
trained or tuned a model. `{SCHEMA_NAME}` has salted hashes of their ids and of their slides, so
that `her2 predict` can say which of somebody's own patients are among them.{_before(body)}

{_table(("", "group", "patients", "slides"), rows)}

{_table(("slides", "lowest", "5 %", "median", "95 %", "highest"), numbers)}"""


def _before(body: Body) -> str:
    """Return where the tiles and the encoder come from, if that is not the usual."""
    said = []
    drawn = {
        name: n
        for name, n in body.tiling.tissue.items()
        if name != "detected" and not name.startswith("segmenter ")
    }
    if drawn:
        shown = ", ".join(f"{n} by {escaped(name)}" for name, n in drawn.items())
        said.append(f"The tissue of some slides was not detected here: {shown}.")
    for network, facts in zip(chosen(body.tiling.options), body.tiling.segmenters, strict=True):
        said.append(
            f"Tiles were chosen with the {network.kind} {facts.name}. Its weights "
            f"({escaped(facts.licence)}) are not here: `her2 predict` fetches them, or takes them "
            f"from `{network.flag} PATH`."
        )
    if body.tiling.annotated:
        said.append(f"{body.tiling.annotated} slides were used within drawn regions only.")
    patches = body.encoder.provenance.get("patches")
    if body.encoder.source == "pretrain" and isinstance(patches, dict):
        cases = len(body.hashes.pretraining_cases)
        of = f" of {cases} cases, whose hashes are there as well" if cases else ""
        said.append(f"The encoder was pre-trained on {patches.get('train', 0)} patches{of}.")
    return "".join(f"\n\n{sentence}" for sentence in said)


def _spread(values: Distribution) -> list[str]:
    return [f"{values.at(percent):.4g}" for percent in (0, 5, 50, 95, 100)]


def _figure_table(body: Body) -> str:
    level = _level(body)
    rows = [
        (_label(one.metric), one.of or "all classes", one.at, *_numbers(one))
        for one in _figures(body, ("metrics", "binary", "calibration", "operating"))
    ]
    drawn = " All slides are synthetic." if body.synthetic else ""
    head = ("figure", "of", "at", "value", f"{body.confidence:.0%} interval", f"{level}s")
    return f"""## Figures

Out of fold: each {level} was predicted by models that did not see it. They are figures of the
folds' models one by one, on the development's own hospitals; figures on another hospital's slides
are likely to be lower.{drawn}

{_table(head, rows)}"""


def _numbers(one: Figure) -> tuple[str, str, str]:
    if one.value is None:
        return "NA", "", "" if one.n is None else str(one.n)
    ends = "" if one.low is None or one.high is None else (
        f"{one.low:.{_DECIMALS}f} to {one.high:.{_DECIMALS}f}"
    )  # fmt: skip
    return f"{one.value:.{_DECIMALS}f}", ends, "" if one.n is None else str(one.n)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _limits(body: Body) -> str:
    refit = (
        "\n- The figures are of the folds' models. The model in this bundle was trained on all "
        "patients, so no patient is left to measure it on."
        if body.final == "refit"
        else ""
    )
    return f"""## Limitations

- Labels are those of the development's pathologists, with their disagreement.
- A model can read the hospital, the scanner or the amount of tissue instead of the tumour. The
  report of the development compares it with such covariates.
- Probabilities are for classes as frequent as in the development. Where a class is rarer, they are
  too high for it.
- Attention shows where the model looked, and is no HER2 staining.{refit}"""


def _technical(body: Body) -> str:
    encoder = body.encoder
    weights = (
        f"in the bundle ({escaped(encoder.why)})"
        if encoder.included
        else f"not in the bundle ({escaped(encoder.why)}); other weights are refused"
    )
    packages = ", ".join(f"{name} {version}" for name, version in body.software.packages.items())
    licence = escaped(body.licence) if body.licence else "not stated by who made the bundle"
    return f"""## Technical

- Tiles of {body.grid.size_px} px at {body.grid.mpp:g} um/px.
- Encoder: {escaped(encoder.model)}, {encoder.dimension} features per tile; weights {weights}.
  Digest `{encoder.digest}`.
- Head: {escaped(body.folds[0].head.head)}. Weights are safetensors; nothing in the bundle is code.
- Licence of the heads: {licence}.
- Written by her2 {escaped(body.software.her2)} with {escaped(packages)}; seed {body.seed}."""
