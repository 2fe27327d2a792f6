"""Stage 2, robustness: what the features of each encoder know beside the label.

Every table is of one sample of the cohort (`her2.evaluation.robustness.sample`), and one encoder is
in memory at a time, but for the few rows that encoders are compared by.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from her2.cohort.audit import read_cohort_table
from her2.config.jobs import RobustnessSpec
from her2.core.errors import UserError
from her2.core.files import digest
from her2.core.tables import null, read_result, write_table
from her2.core.types import Floats, Ints
from her2.evaluation.robustness.neighbours import KS, nearest, robustness_index
from her2.evaluation.robustness.probe import LEAST, probe
from her2.evaluation.robustness.sample import Sampled, draw_slides, read_sample
from her2.evaluation.robustness.similarity import linear_cka, participation_ratio
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, read_all_entries

log = logging.getLogger(__name__)

SOURCES = ("site", "scanner")
"""Columns of the cohort's table for where a slide comes from."""
COMPARED = 1024
"""Most tiles that encoders are compared by."""

ENCODERS = {
    "encoder": pl.String,
    "dimension": pl.Int64,
    "patients": pl.Int64,
    "slides": pl.Int64,
    "tiles": pl.Int64,
    "participation_ratio": pl.Float64,
}
_FIGURES = ("auc", "balanced_accuracy")
_CHANCE = ("", "_chance", "_chance_low", "_chance_high", "_p")
PROBES = {
    "encoder": pl.String,
    "target": pl.String,
    "kind": pl.String,
    "groups": pl.Int64,
    "patients": pl.Int64,
    "left_out": pl.Int64,
    "low": pl.Float64,
    "high": pl.Float64,
    **{f"{figure}{part}": pl.Float64 for figure in _FIGURES for part in _CHANCE},
    "note": pl.String,
}
NEIGHBOURS = {
    "encoder": pl.String,
    "task": pl.String,
    "source": pl.String,
    "k": pl.Int64,
    **dict.fromkeys(
        ("value", "low", "high", "plain", "plain_chance", "same_class", "same_site"), pl.Float64
    ),
    "tiles": pl.Int64,
    "note": pl.String,
}
SIMILARITY = {
    "encoder_a": pl.String,
    "encoder_b": pl.String,
    "over": pl.String,
    "rows": pl.Int64,
    "cka": pl.Float64,
    "note": pl.String,
}


@dataclass(frozen=True, slots=True)
class Property:
    """A property of the slides of the sample: a site, a scanner or the class of a task.

    Attributes:
        name: `site`, `scanner`, or the task's name.
        kind: `site`, `scanner` or `label`.
        values: of each slide (s,), -1 where it is not known.
        names: of the values.
        why: why it cannot be predicted; "" if it can.
    """

    name: str
    kind: str
    values: Ints
    names: tuple[str, ...]
    why: str


def measure_robustness(
    spec: RobustnessSpec, cache: Cache, *, cohort: Path, folds: Path, features: Path, output: Path
) -> dict[str, pl.DataFrame]:
    """Write the tables `probes`, `neighbours`, `similarity` and `encoders`.

    Args:
        spec: the job.
        cache: the cache with the feature stores.
        cohort: folder of the table of all slides.
        folds: folder of the folds tables, for the classes of the patients.
        features: folder of the encoders' folders of feature entries.
        output: folder of the tables.

    Returns:
        The tables by name.

    Raises:
        UserError: a store or table is absent or damaged, or no slide has features by every encoder.
    """
    entries = {
        name: read_all_entries(features / name, spec.buckets, FeatureEntry)
        for name in sorted(spec.encoders)
    }
    table = read_cohort_table(cohort).unique("slide_id", keep="first")
    slides = draw_slides(table, _usable(entries), seed=spec.seed)
    properties = [
        *(_source(slides, name) for name in SOURCES),
        *(_label(slides, name, read_result(folds / f"{name}.parquet")) for name in spec.tasks),
    ]
    for one in properties:
        if one.why:
            log.info("%s: cannot be predicted: %s", one.name, one.why)
    rows: dict[str, list[dict[str, Any]]] = {"encoders": [], "probes": [], "neighbours": []}
    kept = {}
    for name in spec.encoders:
        sample = read_sample(slides, entries[name], features / name, cache, seed=spec.seed)
        rows["encoders"].append(_encoder(slides, sample) | {"encoder": name})
        for one in properties:
            rows["probes"].append(_probe(spec, slides, sample, one) | {"encoder": name})
        found = _neighbours(spec, slides, sample, properties)
        rows["neighbours"] += [row | {"encoder": name} for row in found]
        kept[name] = _fewer(sample)
    tables = {
        "probes": pl.DataFrame(rows["probes"], schema=PROBES),
        "neighbours": pl.DataFrame(rows["neighbours"], schema=NEIGHBOURS),
        "similarity": pl.DataFrame(list(_similarities(spec, kept)), schema=SIMILARITY),
        "encoders": pl.DataFrame(rows["encoders"], schema=ENCODERS),
    }
    for name, made in tables.items():
        write_table(made, output / name)
    return tables


def _usable(entries: Mapping[str, Mapping[str, FeatureEntry]]) -> Collection[str]:
    """Return the slides that have features by every encoder."""
    usable = [
        {slide for slide, entry in own.items() if entry.status == "ok"} for own in entries.values()
    ]
    shared = set.intersection(*usable)
    if not shared:
        raise UserError(
            "no slide has features by every encoder, so they cannot be compared; `her2 status` "
            "says why slides were left out."
        )
    if lost := len(set.union(*usable) - shared):
        log.info("%d slides lack the features of an encoder and are left out", lost)
    return shared


def _source(slides: pl.DataFrame, name: str) -> Property:
    texts = slides[name].cast(pl.String) if name in slides.columns else pl.Series([None])
    if not len(texts.drop_nulls()):
        return Property(name, name, np.full(len(slides), -1), (), "not in the manifest")
    names = tuple(sorted(texts.drop_nulls().unique()))
    values = np.array([-1 if text is None else names.index(text) for text in texts])
    return _judged(slides, Property(name, name, values, names, ""))


def _label(slides: pl.DataFrame, task: str, folds: pl.DataFrame) -> Property:
    classes = dict(folds.drop_nulls("label").select("slide_id", "label").unique().iter_rows())
    values = np.array([classes.get(slide, -1) for slide in slides["slide_id"]])
    names = tuple(map(str, range(int(values.max(initial=-1)) + 1)))
    return _judged(slides, Property(task, "label", values, names, ""))


def _judged(slides: pl.DataFrame, one: Property) -> Property:
    """Return a property with the reason why it cannot be predicted."""
    counts = np.bincount(_of_patients(slides, one)[1], minlength=len(one.names))
    if np.count_nonzero(counts >= LEAST) >= 2:
        return one
    present = np.flatnonzero(counts)
    words = "classes" if one.kind == "label" else f"{one.kind}s"
    why = f"fewer than two {words} have {LEAST} patients"
    if one.kind != "label" and len(present) == 1:
        why = f"every patient is of one {one.kind} ({one.names[present[0]]})"
    return Property(one.name, one.kind, one.values, one.names, why)


def _of_patients(slides: pl.DataFrame, one: Property) -> tuple[Ints, Ints]:
    """Return the slides that count (m,), and the value of each patient who has one (n,), sorted.

    A patient has the value of their first slide that has one, and counts with the slides of it.
    """
    table = pl.DataFrame({"patient": slides["patient_id"], "value": one.values}).with_row_index()
    known = table.filter(pl.col("value") >= 0)
    first = known.group_by("patient").agg(pl.col("value").first()).sort("patient")
    counted = known.join(first, on=["patient", "value"], how="semi")["index"]
    return counted.sort().cast(pl.Int64).to_numpy(), first["value"].cast(pl.Int64).to_numpy()


def _encoder(slides: pl.DataFrame, sample: Sampled) -> dict[str, Any]:
    return {
        "dimension": sample.means.shape[1],
        "patients": slides["patient_id"].n_unique(),
        "slides": len(slides),
        "tiles": len(sample.tiles),
        "participation_ratio": null(participation_ratio(sample.tiles)),
    }


def _probe(
    spec: RobustnessSpec, slides: pl.DataFrame, sample: Sampled, one: Property
) -> dict[str, Any]:
    counted, values = _of_patients(slides, one)
    sizes = np.bincount(values, minlength=len(one.names))
    large = sizes >= LEAST
    kept = large[values] if len(values) else np.zeros(0, bool)
    row: dict[str, Any] = {
        "target": one.name,
        "kind": one.kind,
        "groups": int(np.count_nonzero(large)),
        "patients": int(np.count_nonzero(kept)),
        "left_out": int(np.count_nonzero(~kept)),
        "note": one.why,
    }
    if one.why:
        return row
    means = _patient_means(slides, sample, counted)
    groups = (np.cumsum(large) - 1)[values[kept]]
    found = probe(
        means[kept], groups, confidence=spec.confidence, seed=_seed(spec, one.kind, one.name)
    )
    row |= {"low": null(found.area.low), "high": null(found.area.high)}
    row["note"] = found.area.note
    for figure in _FIGURES:
        chance = getattr(found, figure)
        parts = (chance.value, chance.mean, chance.low, chance.high, chance.p)
        row |= {f"{figure}{part}": null(value) for part, value in zip(_CHANCE, parts, strict=True)}
    return row


def _patient_means(slides: pl.DataFrame, sample: Sampled, counted: Ints) -> Floats:
    """Return the mean embedding of each patient (n, d), sorted, over the slides that count."""
    _, owner = np.unique(slides["patient_id"].to_numpy()[counted].astype(str), return_inverse=True)
    totals = np.zeros((int(owner.max()) + 1, sample.means.shape[1]))
    np.add.at(totals, owner, sample.means[counted])
    return totals / np.bincount(owner)[:, None]


def _neighbours(
    spec: RobustnessSpec, slides: pl.DataFrame, sample: Sampled, properties: list[Property]
) -> Iterator[dict[str, Any]]:
    sources = [one for one in properties if one.kind != "label"]
    tasks = [one for one in properties if one.kind == "label"]
    patients = np.unique(slides["patient_id"].to_numpy().astype(str), return_inverse=True)[1]
    owners = patients[sample.owner]
    near = None
    for source in sources:
        for task in tasks:
            row: dict[str, Any] = {"task": task.name, "source": source.name}
            if len(source.names) < 2:
                yield row | {"note": source.why}
                continue
            near = near or nearest(sample.tiles, owners, max(KS))
            found = robustness_index(
                *near,
                owners,
                task.values[sample.owner],
                source.values[sample.owner],
                confidence=spec.confidence,
                seed=_seed(spec, source.name, task.name),
            )
            if not found:
                yield row | {"note": f"no {source.kind} shares classes with another"}
            for one in found:
                values = {name: value if isinstance(value, int) else null(value)
                          for name, value in asdict(one).items()}  # fmt: skip
                yield row | values | {"note": ""}


def _fewer(sample: Sampled) -> Sampled:
    """Return the sample with the first tiles of each slide, about `COMPARED` in all."""
    each = max(1, COMPARED // max(1, len(sample.means)))
    first = np.searchsorted(sample.owner, sample.owner)  # the row of the slide's first tile
    kept = np.arange(len(sample.owner)) - first < each
    if len(sample.means) > COMPARED:  # as a rule sorted by site, so not the first
        kept &= np.isin(sample.owner, np.linspace(0, len(sample.means) - 1, COMPARED).astype(int))
    return Sampled(
        sample.means.astype(np.float32),
        sample.tiles[kept],
        sample.owner[kept],
        sample.places[kept],
    )


def _similarities(spec: RobustnessSpec, samples: Mapping[str, Sampled]) -> Iterator[dict[str, Any]]:
    for a, b in combinations(spec.encoders, 2):
        one, two = samples[a], samples[b]
        if spec.encoders[a] == spec.encoders[b]:
            first, second = _shared(one, two)
            over, rows = "tiles", len(first)
            value = linear_cka(one.tiles[first], two.tiles[second])
        else:
            over, rows, value = "slides", len(one.means), linear_cka(one.means, two.means)
        note = "not defined: too few rows, or they do not vary" if np.isnan(value) else ""
        names = {"encoder_a": a, "encoder_b": b}
        yield names | {"over": over, "rows": rows, "cka": null(value), "note": note}


def _shared(one: Sampled, two: Sampled) -> tuple[Ints, Ints]:
    """Return the rows of the tiles that two samples of one grid share."""
    tables = [
        pl.DataFrame({"slide": s.owner, "x": s.places[:, 0], "y": s.places[:, 1]}).with_row_index()
        for s in (one, two)
    ]
    both = tables[0].join(tables[1], on=["slide", "x", "y"], how="inner", maintain_order="left")
    first, second = (both[name].cast(pl.Int64).to_numpy() for name in ("index", "index_right"))
    return first, second


def _seed(spec: RobustnessSpec, *names: str) -> int:
    """Return a seed of its own for a question, the same for every encoder."""
    return int(digest([spec.seed, *names])[:15], 16)
