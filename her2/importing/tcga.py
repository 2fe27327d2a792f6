"""TCGA: the HER2 labels of its patients.

Source: Wolff et al., ASCO/CAP guideline, Journal of Clinical Oncology 36(20), 2018 (status).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from her2.core.barcodes import PATIENT
from her2.core.errors import UserError
from her2.core.reading import path_problem
from her2.core.spelling import folded, is_unknown, printable
from her2.importing.labels import her2_score, status_of
from her2.importing.sheets import SheetTable, read_sheet_file

Trust = Literal["unlabelled", "ihc", "fish"]
"""What counts where sources contradict each other; `unlabelled`: none of them."""

_KEYS = ("bcr_patient_barcode", "Patient ID", "PATIENT_ID")
_SCORE = ("her2_ihc_score", "HER2 ihc score", "her2_immunohistochemistry_level_result")
_STATED = ("her2_status_by_ihc", "IHC-HER2", "IHC_HER2",
           "lab_proc_her2_neu_immunohistochemistry_receptor_status")  # fmt: skip
_FISH = ("her2_fish_status", "HER2 fish status",
         "lab_procedure_her2_neu_in_situ_hybrid_outcome_type")  # fmt: skip
_SIDES = ("negative", "positive", "equivocal")
_OPEN = ("indeterminate", "[discrepancy]", "[completed]", "[unknown]")
"""Words of TCGA for a result that is none."""


@dataclass(frozen=True, slots=True)
class Results:
    """The HER2 results of a patient as a clinical file has them, `""` where it has none.

    Attributes:
        score: 0, 1+, 2+ or 3+ by immunohistochemistry (IHC).
        stated: status that the laboratory gave by IHC: `negative`, `positive`, `equivocal`.
        fish: status by in-situ hybridisation: `negative`, `positive`, `equivocal`.
    """

    score: str
    stated: str
    fish: str

    @property
    def ihc(self) -> str:
        """Status by IHC: that of the score, and where there is none, the stated one."""
        return status_of(self.score, "equivocal") or self.stated

    @property
    def contradiction(self) -> str:
        """How the score contradicts the stated status, `""` if it does not.

        2+ with a stated status is no contradiction: laboratories state what came of the FISH.
        """
        if self.score in ("", "2+") or self.stated in ("", self.ihc):
            return ""
        return f"IHC score {self.score}, yet IHC status {self.stated}"

    @property
    def discordance(self) -> str:
        """How hybridisation contradicts a definite IHC, `""` if it does not."""
        definite = {"negative", "positive"}
        if {self.ihc, self.fish} != definite:
            return ""
        seen = f"score {self.score}" if self.score else f"status {self.stated}"
        return f"IHC {seen}, yet FISH {self.fish}"


def her2_labels(results: Results, trust: Trust) -> dict[str, str]:
    """Return the labels `her2` (score), `her2_status` and `fish` of a patient."""
    fish = "" if results.fish == "equivocal" else results.fish
    score = results.score
    status = fish if results.ihc in ("equivocal", "") else results.ihc
    if results.contradiction or results.discordance:
        status = {"unlabelled": "", "ihc": results.ihc, "fish": fish}[trust]
    if results.contradiction and trust != "ihc":
        score = ""
    return {"her2": score, "her2_status": status, "fish": fish}


@dataclass(frozen=True, slots=True)
class Clinical:
    """The patients of a clinical file.

    Attributes:
        labels: patient -> label column -> value.
        conflicts: patient -> how results of it contradict each other, and what was made of that.
        said: how the file was read.
    """

    labels: dict[str, dict[str, str]]
    conflicts: dict[str, str]
    said: tuple[str, ...]


def read_clinical(path: Path, trust: Trust) -> Clinical:
    """Read a clinical file: TCGA's BCR Biotab (three rows of headers), or cBioPortal's table.

    Raises:
        UserError: it cannot be read, has no HER2 columns, or is that of another cohort.
    """
    table = _table(path)
    scores = table.column(*_SCORE)
    stated, fish = _optional(table, _STATED), _optional(table, _FISH)
    rows: dict[str, set[tuple[str, str, str]]] = {}
    others = 0
    for cell, *cells in zip(table.column(*_KEYS), scores, stated, fish, strict=True):
        found = PATIENT.match(cell)
        if found is None:
            others += 1  # the further headers of Biotab are among these
        else:
            rows.setdefault(found[0].upper(), set()).add((cells[0], cells[1], cells[2]))
    if not rows:
        raise UserError(
            f"--clinical {path}: no row has a TCGA barcode in {_KEYS[0]!r} or {_KEYS[1]!r}, so it "
            "is the file of another cohort."
        )
    labels, conflicts = {}, {}
    for patient, results in rows.items():
        labels[patient], conflict = _patient(results, trust)
        if conflict:
            conflicts[patient] = f"patient {patient}: {conflict}"
    said = [*table.said, f"{len(rows):,} patients"]
    if others:
        said.append(f"{others} rows without a patient's barcode, as further headers, left out")
    lacking = [
        names[0] for names in (_STATED, _FISH) if all(table.find(name) is None for name in names)
    ]
    if lacking:
        said.append(f"it has no column {' and none '.join(lacking)}")
    return Clinical(labels, conflicts, tuple(said))


def label_rules(trust: Trust) -> tuple[str, ...]:
    """Return how the labels follow from the clinical file, as sentences."""
    counts = {
        "unlabelled": "such patients have no status, and where the IHC score contradicts the IHC "
        "status, no score either (--conflicts)",
        "ihc": "IHC counts, and its score before its status (--conflicts ihc)",
        "fish": "FISH counts; without a FISH result there is no status, and where the IHC score "
        "contradicts the IHC status, no score (--conflicts fish)",
    }
    return (
        "her2 is the IHC score of the primary tumour; fish is the FISH status",
        "her2_status: IHC 0 and 1+ negative, 3+ positive, 2+ by FISH (ASCO/CAP 2018); where the "
        "score is missing, the IHC status in its place, equivocal as 2+; without any IHC, FISH. 2+ "
        "without a FISH result has no status",
        f"where IHC score, IHC status and FISH contradict each other, {counts[trust]}",
    )


def _table(path: Path) -> SheetTable:
    if problem := path_problem(path):
        raise UserError(f"--clinical {path}: {problem}.")
    for key in _KEYS:
        try:
            table = read_sheet_file(path, wanted=(key,))
        except UserError as error:
            last = error
            continue
        if table.find(*_SCORE) is None:
            raise UserError(
                f"--clinical {path}: has the patients in {key!r}, but no column {_SCORE[0]!r} "
                f"(Biotab) or {_SCORE[1]!r} (cBioPortal). Give nationwidechildrens.org_clinical_"
                "patient_brca.txt, or cBioPortal's table of the study Breast Invasive Carcinoma "
                "(TCGA, Firehose Legacy)."
            )
        return table
    raise UserError(
        f"--clinical {last} A clinical file has the patients in {_KEYS[0]!r} (Biotab) or "
        f"{_KEYS[1]!r} (cBioPortal)."
    )


def _optional(table: SheetTable, names: tuple[str, ...]) -> list[str]:
    return [""] * len(table.rows) if table.find(*names) is None else table.column(*names)


def _patient(rows: set[tuple[str, str, str]], trust: Trust) -> tuple[dict[str, str], str]:
    """Return the labels of a patient, and what is wrong with its results."""
    if len(rows) > 1:
        return dict.fromkeys(("her2", "her2_status", "fish"), ""), (
            "has rows with different results: "
            f"{'; '.join(printable(' / '.join(row)) for row in sorted(rows))}: no label"
        )
    (score, stated, fish), = rows  # fmt: skip
    results = Results(her2_score(score), _side(stated), _side(fish))
    labels = her2_labels(results, trust)
    words = [*_not_understood(results, score, stated, fish)]
    if seen := [one for one in (results.contradiction, results.discordance) if one]:
        kept = ", ".join(f"{name} {labels[name] or 'empty'}" for name in ("her2", "her2_status"))
        words.append(f"{'; '.join(seen)}: {kept}")
    return labels, "; ".join(words)


def _side(cell: str) -> str:
    return folded(cell) if folded(cell) in _SIDES else ""


def _not_understood(results: Results, *cells: str) -> Iterator[str]:
    read = (results.score, results.stated, results.fish)
    for name, value, cell in zip((_SCORE[0], _STATED[0], _FISH[0]), read, cells, strict=True):
        if not value and not is_unknown(cell) and folded(cell) not in _OPEN:
            yield f"{name} {printable(cell)!r} is no result that is known: left empty"
