"""Cohorts and files of others: what the barcode of a TCGA slide says.

Source: https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode.
"""

import re
from dataclasses import dataclass
from typing import Literal

_SLIDE = re.compile(
    r"(?P<patient>TCGA-(?P<site>[A-Z0-9]{2})-[A-Z0-9]{4})-(?P<sample>\d\d)[A-Z]-[A-Z0-9]{2}-"
    r"(?P<kind>DX|TS|BS|MS)[A-Z0-9]{1,2}(?![A-Z0-9])",
    re.IGNORECASE,
)
PATIENT = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)
"""The barcode of a patient, anywhere in a text."""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SlideName:
    """What the barcode of a slide says.

    Attributes:
        slide: the barcode up to the slide, `TCGA-A1-A0SB-01Z-00-DX1`.
        patient: its first 12 characters.
        site: the tissue source site, `A1`.
        sample_type: 1 is a primary tumour, 6 a metastasis, 10 to 19 are normal tissue.
        kind: `diagnostic` (fixed in formalin) or `frozen`.
        uuid: that of the scan, in lower case, where the name has it after the barcode; else "".
    """

    slide: str
    patient: str
    site: str
    sample_type: int
    kind: Literal["diagnostic", "frozen"]
    uuid: str = ""


def slide_name(name: str) -> SlideName | None:
    """Return what a file's name says, None if it does not begin with the barcode of a slide."""
    found = _SLIDE.match(name)
    if found is None:
        return None
    uuid = _UUID.search(name, found.end())
    return SlideName(
        slide=found[0].upper(),
        patient=found["patient"].upper(),
        site=found["site"].upper(),
        sample_type=int(found["sample"]),
        kind="diagnostic" if found["kind"].upper() == "DX" else "frozen",
        uuid=uuid[0].lower() if uuid else "",
    )


def patient_of(text: str) -> str:
    """Return the patient's barcode that a text has anywhere, "" if it has none."""
    found = PATIENT.search(text)
    return found[0].upper() if found else ""
