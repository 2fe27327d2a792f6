"""Features out: the files and tables of STAMP 2.

The layout is that of `extract_` in `src/stamp/preprocessing/__init__.py` (KatherLab/STAMP, commit
4541642c), read by `BagDataset`, `get_coords`, `patient_to_ground_truth_from_clini_table_` and
`slide_to_patient_from_slide_table_` in `src/stamp/modeling/data.py` (commit 2aa37a5f). There is no
`stamp_version`, as no STAMP wrote the files: its readers compare it only where it is there.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.core.errors import UserError
from her2.exchange.outgoing import Outgoing, Row
from her2.exchange.slide_features import SlideFeatures
from her2.exchange.writers import Writer
from her2.exchange.writers._hdf5 import write_hdf5

_LARGEST = np.dtype(np.float32)


def _extractor(outgoing: Outgoing) -> str:
    """Return what the encoder is called: never like one of STAMP's, which cuts tiles otherwise."""
    return f"her2-{outgoing.encoder}-{outgoing.card.digest[:8]}"


def _files(outgoing: Outgoing, slide: SlideFeatures) -> dict[str, str]:
    return {"features": f"{_extractor(outgoing)}/{slide.slide_id}.h5"}


def coords_um(slide: SlideFeatures) -> NDArray[np.float32]:
    """Return the top left corners (n, 2) in um, as STAMP has them."""
    return (slide.coords * np.array(slide.slide_mpp)).astype(np.float32)


def _write(outgoing: Outgoing, slide: SlideFeatures, paths: Mapping[str, Path]) -> None:
    write_hdf5(
        paths["features"],
        outgoing,
        slide,
        features="feats",
        coords=coords_um(slide),
        attributes={
            "extractor": _extractor(outgoing),
            "unit": "um",
            "tile_size_um": slide.mpp * slide.tile_px,
            "tile_size_px": slide.tile_px,
            "feat_type": "tile",
        },
    )


def _tables(outgoing: Outgoing, slides: Sequence[str]) -> dict[str, pl.DataFrame]:
    if outgoing.rows is None:
        raise UserError(
            f"{outgoing.features}: the results have no table of the cohort (cohort/slides.parquet) "
            "from which STAMP's tables are made. Run snakemake to its end."
        )
    rows = _rows(outgoing, slides)
    # STAMP takes only the last run of equal patients, so those of a patient stand together.
    ordered = sorted(rows, key=lambda slide: (rows[slide].patient_id, slide))
    files = {
        "PATIENT": [rows[slide].patient_id for slide in ordered],
        "FILENAME": [f"{slide}.h5" for slide in ordered],
    }
    schema = dict.fromkeys(files, pl.String)
    return {"slide.csv": pl.DataFrame(files, schema=schema), "clini.csv": _clini(rows)}


def _rows(outgoing: Outgoing, slides: Sequence[str]) -> dict[str, Row]:
    rows = outgoing.rows or {}
    return {slide: rows[slide] for slide in slides if slide in rows}


def _clini(rows: Mapping[str, Row]) -> pl.DataFrame:
    """Return a row for each patient; where its slides have different labels, none of them."""
    names = sorted({name for row in rows.values() for name in row.labels})
    given: dict[str, dict[str, set[str]]] = {}
    for row in rows.values():
        own = given.setdefault(row.patient_id, {name: set() for name in names})
        for name, label in row.labels.items():
            own[name] |= set() if label is None else {label}
    found = [
        (patient, *(min(own[name]) if len(own[name]) == 1 else None for name in names))
        for patient, own in sorted(given.items())
    ]
    schema = dict.fromkeys(("PATIENT", *names), pl.String)
    return pl.DataFrame(found, schema=schema, orient="row")


def _losses(outgoing: Outgoing, slide: SlideFeatures) -> list[str]:
    found = [
        "STAMP's coordinates are um; level-0 px follow with the slide's um/px, which is only in "
        "the attribute 'her2' of each file"
    ]
    back = np.rint(coords_um(slide) / np.array(slide.slide_mpp))
    if not np.array_equal(back, slide.coords):
        found.append("the px of far tiles are not exact, as STAMP's coordinates are float32")
    if slide.dtype.itemsize > _LARGEST.itemsize:
        found.append(f"STAMP rounds {slide.dtype} to float32 when it reads the features")
    if slide.mpp_source == "manifest":
        found.append(
            "um/px of the slide is the manifest's; for heatmaps STAMP reads that of the slide, "
            "unless default_slide_mpp is set"
        )
    if outgoing.rows is not None and _differing(outgoing, slide.slide_id):
        found.append(
            "clini.csv has one row for each patient, without a label where those of the slides "
            "differ"
        )
    return found


def _differing(outgoing: Outgoing, slide_id: str) -> bool:
    rows = outgoing.rows or {}
    if slide_id not in rows:
        return False
    patient = rows[slide_id].patient_id
    own = [row.labels for row in rows.values() if row.patient_id == patient]
    names = own[0]
    return any(len({labels[name] for labels in own} - {None}) > 1 for name in names)


def _advice(outgoing: Outgoing, slides: Sequence[str], out: Path) -> tuple[str, ...]:
    patients = _clini(_rows(outgoing, slides))
    labels = patients.columns[1:]
    # Of patients alone: with a category of none, STAMP's weight of it is infinite and its loss NaN.
    classes = patients[labels[0]].drop_nulls().unique().sort().to_list() if labels else []
    return (
        "STAMP: in its config.yaml, under crossval or training:",
        f'  clini_table: "{out.absolute()}/clini.csv"',
        f'  slide_table: "{out.absolute()}/slide.csv"',
        f'  feature_dir: "{out.absolute()}/{_extractor(outgoing)}"',
        f'  ground_truth_label: "{labels[0] if labels else "LABEL"}"'
        + (f"  # or {', '.join(labels[1:])}" if labels[1:] else ""),
        f"  categories: {json.dumps(classes, ensure_ascii=False)}"
        + ("" if len(classes) > 1 else "  # STAMP needs patients of two"),
    )


WRITER = Writer(
    name="stamp",
    words="STAMP 2: HDF5 files, and its clini and slide tables",
    files=_files,
    write=_write,
    losses=_losses,
    tables=_tables,
    advice=_advice,
    needs=("coords", "slide_mpp", "mpp_source", "mpp", "tile_px"),
)
