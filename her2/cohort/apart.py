"""External cohorts: whether a patient or a slide is in the development cohort too.

Patient ids are compared when the workflow is read, before any job, and once more with the contents
of slides when both cohorts are tiled. Every Snakemake process imports this module, so it imports
polars only to read tables.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from her2.cohort.manifest import Cohort
from her2.config.external_jobs import ApartSpec
from her2.core.errors import problem_list
from her2.core.files import write_json
from her2.core.reading import read_json
from her2.core.spelling import folded, folded_id, spelt
from her2.core.stamps import noted

REMEDY = (
    "Remove them from one of the manifests. If these are other people who share a number, put a "
    "prefix before the patient ids of one cohort"
)
_BARCODE = re.compile(r"(?<![a-z0-9])tcga[-_. ]([a-z0-9]{2})[-_. ]([a-z0-9]{4})(?![a-z0-9])")
_SHOWN = 5

Slides = Collection[tuple[str, str]]
"""Slide id and patient id of each slide."""


@dataclass(frozen=True, slots=True)
class Apart:
    """What was compared: numbers of slides, patients and contents of slides of both cohorts.

    A slide that could not be read has no content. `cautions` are sentences on what may be the same
    patient or slide, and stopped nothing.
    """

    cohort: str
    slides: int
    patients: int
    contents: int
    development_slides: int
    development_patients: int
    development_contents: int
    cautions: tuple[str, ...]


def check_apart(spec: ApartSpec, *, cohort: Path, development: Path, output: Path) -> Apart:
    """Stop if a patient, or the content of a slide, is in both cohorts; write what was compared.

    Args:
        spec: the job.
        cohort: the audit's table of the external cohort.
        development: the audit's table of the development cohort.
        output: the JSON file.

    Raises:
        UserError: patients or contents are in both; the message names the slides of both.
    """
    from her2.core.tables import read_result

    tables = [
        list(read_result(path, columns=["slide_id", "patient_id", "fingerprint"]).iter_rows())
        for path in (cohort, development)
    ]
    external, known = ([(slide, patient) for slide, patient, _ in rows] for rows in tables)
    contents, known_contents = (
        {content: f"{slide} (patient {patient})" for slide, patient, content in rows if content}
        for rows in tables
    )
    problems = _shared(known, external) + [
        f"slide {slide} has the same content as slide {known_contents[content]} of development"
        for content, slide in contents.items()
        if content in known_contents
    ]
    if problems:
        raise problem_list(headline(spec.cohort), problems)
    found = Apart(
        cohort=spec.cohort,
        slides=len(external),
        patients=len({patient for _, patient in external}),
        contents=len(contents),
        development_slides=len(known),
        development_patients=len({patient for _, patient in known}),
        development_contents=len(known_contents),
        cautions=tuple(_doubts(known, external)),
    )
    write_json(output, asdict(found))
    return found


def read_apart(path: Path) -> Apart:
    """Read the file that `check_apart` wrote."""
    values = read_json(noted(path))
    return Apart(**values | {"cautions": tuple(values["cautions"])})


def headline(cohort: str) -> str:
    """Return the first line of the error about what an external cohort shares."""
    return (
        f"validation.{cohort}: shares patients or slides with the development cohort, on which the "
        f"models were trained, so its figures would be too good. {REMEDY}"
    )


def shared_patients(development: Cohort, external: Cohort) -> list[str]:
    """Return a text for each patient who is in both cohorts, with the slides of both.

    That is a patient with the same id, or with the same TCGA barcode at whatever depth, in a
    patient id or a slide id: `TCGA-A1-A0SB` and `TCGA-A1-A0SB-01Z-00-DX1`.
    """
    return _shared(_listed(development), _listed(external))


def doubtful_ids(development: Cohort, external: Cohort) -> list[str]:
    """Return sentences on ids that may name one patient or slide in both cohorts."""
    return _doubts(_listed(development), _listed(external))


def _listed(cohort: Cohort) -> Slides:
    return [(row.slide_id, row.patient_id) for row in cohort.rows]


def _shared(development: Slides, external: Slides) -> list[str]:
    known, found = _people(development), _people(external)
    texts = (
        f"patient {spelt(dict.fromkeys([*found[person].values(), *known[person].values()]))}: "
        f"slides {_some(found[person])} here, and {_some(known[person])} in development"
        for person in sorted(found.keys() & known.keys())
    )
    return list(dict.fromkeys(texts))


def _people(slides: Slides) -> Mapping[str, dict[str, str]]:
    """Return patient -> slide id -> the patient's id in its row."""
    people: dict[str, dict[str, str]] = defaultdict(dict)
    for slide, patient in slides:
        for person in {barcode(patient) or patient, barcode(slide)} - {None}:
            people[str(person)][slide] = patient
    return people


def barcode(text: str) -> str | None:
    """Return the part of a TCGA barcode that names the patient, None if the text has none."""
    found = _BARCODE.search(folded(text)) if "cga" in text.lower() else None
    return f"TCGA-{found[1]}-{found[2]}".upper() if found else None


def _doubts(development: Slides, external: Slides) -> list[str]:
    """Return cautions on patient ids that look alike, and on slide ids in both cohorts."""
    known, found = ({patient for _, patient in slides} for slides in (development, external))
    alike = {folded_id(patient): patient for patient in sorted(known)}
    pairs = [
        spelt([patient, alike[folded_id(patient)]])
        for patient in sorted(found - known)
        if folded_id(patient) in alike
    ]
    same = {slide for slide, _ in development} & {slide for slide, _ in external}
    cautions = []
    if pairs:
        cautions.append(
            "Patient ids of this cohort and of development are the same but for case, spaces, "
            f"dashes or zeros: {_some(pairs)}. If they are the same patients, write them alike, so "
            "that the run stops: the figures would be too good."
        )
    if same:
        cautions.append(
            f"Slides of both cohorts have the same id, but other content: {_some(sorted(same))}. "
            "If one is the other saved again, remove it from one of the manifests."
        )
    return cautions


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(islice(names, _SHOWN)) + more
