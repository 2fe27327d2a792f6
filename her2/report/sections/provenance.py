"""Stage 2, report: the software, encoders and config behind the results."""

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import polars as pl
import yaml

from her2.core.files import canonical_json, digest
from her2.report.external_results import ExternalCohort
from her2.report.format import portable, without_folders
from her2.report.results import Results
from her2.report.section import Section
from her2.report.tables import PageTable, TableRow, page_table

LIST_SHOWN = 10
PACKAGES = (
    "torch",
    "timm",
    "snakemake",
    "zarr",
    "numcodecs",
    "scikit-learn",
    "scipy",
    "pyarrow",
    "polars",
    "openslide-python",
    "openslide-bin",
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Versions, encoders and devices, seed and config, without machine names or times."""

    versions: tuple[tuple[str, str], ...]
    encoders: pl.DataFrame
    seed: int
    config_yaml: str
    config_digest: str
    shortened: bool
    external: PageTable | None = None


def provenance(results: Results) -> Provenance:
    """Gather the provenance of a run.

    Absolute paths of the config are shown, and digested, as `.../NAME`.
    """
    shown = portable(results.config.model_dump(mode="python"))
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=96)
    return Provenance(
        versions=versions(results.software),
        encoders=encoders_table(results),
        seed=results.config.seed,
        config_yaml=text,
        config_digest=digest(shown),
        shortened=shown != results.config.model_dump(mode="json"),
        external=_external(results),
    )


def _external(results: Results) -> PageTable | None:
    """Return how the features of external cohorts were made, and by how many models predicted."""
    rows: list[TableRow] = [
        (
            cohort.name,
            encoder,
            ", ".join(cohort.precisions[encoder]) or "no features",
            ", ".join(cohort.devices[encoder]) or "-",
            _models(cohort, encoder),
        )
        for cohort in results.external
        for encoder in results.config.encoders
    ]
    if not rows:
        return None
    return page_table(
        "External cohorts: features and models",
        ("Cohort", "Encoder", "Precision", "Devices", "Models per encoder and head"),
        rows,
    )


def _models(cohort: ExternalCohort, encoder: str) -> str:
    if cohort.section.final == "refit":
        return "1, trained on all patients of development"
    found = {n for one in cohort.models if one.encoder == encoder for n in one.applied["models"]}
    return ", ".join(str(number) for number in sorted(found)) or "-"


def versions(software: str) -> tuple[tuple[str, str], ...]:
    """Return (name, version) of this package, Python and the packages results depend on."""
    return (
        ("her2", software),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in PACKAGES),
    )


def encoders_table(results: Results) -> pl.DataFrame:
    """Return one row per encoder: its card, and in what precision and where it was computed."""
    return pl.DataFrame(
        {
            "name": name,
            "architecture": f"{card.library}/{card.architecture}"
            if card.computed_here
            else f"{card.architecture} (not computed here)",
            "source": card.source,
            "provenance": without_folders(
                ", ".join(f"{key} {_shown(of)}" for key, of in sorted(card.provenance.items()))
            ),
            "feature": card.feature,
            "dimension": card.dimension,
            "mpp": card.mpp,
            "size": card.size,
            "precision_asked": card.precision,
            "precision_used": ", ".join(results.precisions[name]) or "no features",
            "devices": ", ".join(results.devices[name]) if card.computed_here else "",
            "storage": card.storage,
            "licence": card.licence,
            "weights_sha256": card.weights_sha256,
            "digest": card.digest,
        }
        for name, card in results.cards.items()
    )


def _shown(value: Any) -> str:
    """Return a value as text; long lists (the cases of a patch set) are counted instead."""
    if isinstance(value, list) and len(value) > LIST_SHOWN:
        return f"({len(value):,})"
    return str(value) if isinstance(value, str | int) else canonical_json(value)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


SECTION = Section(
    anchor="provenance",
    title="Provenance",
    order=110,
    collect=provenance,
    tables={"encoders": encoders_table},
)
