"""TCGA-BRCA: slides of the Genomic Data Commons, and a clinical file with the HER2 results."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from her2.core.barcodes import SlideName, slide_name
from her2.core.errors import UserError
from her2.core.reading import path_problem
from her2.importing.copies import repeated
from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.gdc import (
    AGAIN,
    GdcFile,
    GdcSample,
    file_problems,
    read_manifest,
    read_sample_sheet,
)
from her2.importing.matching import slide_files, unfinished_files
from her2.importing.tcga import Trust, label_rules, read_clinical

PROJECT = "TCGA-BRCA"
Kinds = Literal["diagnostic", "frozen", "all"]
_METASTASES = (6, 7)


def read(
    folder: Path,
    *,
    out: Path,
    clinical: Path,
    manifest: Path | None = None,
    sample_sheet: Path | None = None,
    slides: Kinds = "diagnostic",
    conflicts: Trust = "unlabelled",
    skip_md5: bool = False,
    threads: int = 4,
) -> Found:
    """Read a download of the Genomic Data Commons (GDC).

    Args:
        folder: the folder that gdc-client filled, with a folder for each file.
        out: not used; nothing is converted.
        clinical: nationwidechildrens.org_clinical_patient_brca.txt (BCR Biotab of the GDC), or
            cBioPortal's table of clinical data.
        manifest: the GDC's manifest of the download, by which sizes and contents are checked.
        sample_sheet: the GDC's sample sheet of the download, by which slides of other projects are
            left out.
        slides: which slides to take. Diagnostic ones were fixed in formalin, as in hospitals.
        conflicts: what counts where IHC score, IHC status and FISH contradict each other.
        skip_md5: compare sizes alone with the manifest, which does not read the slides.
        threads: files that are read at the same time.
    """
    if problem := path_problem(folder, "folder"):
        raise UserError(f"{folder}: {problem}. Name the folder that gdc-client filled.")
    patients = read_clinical(clinical, conflicts)
    listed = () if manifest is None else read_manifest(manifest)
    samples = {} if sample_sheet is None else read_sample_sheet(sample_sheet)
    files = slide_files(folder)
    unfinished = unfinished_files(folder)
    names = {path: name for path in files if (name := _svs_name(path))}
    if not names and not unfinished:
        raise UserError(
            f"{folder}: has no slide of TCGA, whose names are like TCGA-A1-A0SB-01Z-00-DX1.UUID"
            f".svs{_instead(files)}. Name the folder that gdc-client filled."
        )

    reasons: dict[Path, str] = {}
    damaged: dict[Path, str] = {}
    for path in files:
        if reason := _unfit(path, names.get(path), slides, samples.get(path.name), patients.labels):
            reasons[path] = reason
    kept = [path for path in files if path not in reasons]
    unlisted: tuple[Path, ...] = ()
    if manifest is not None:
        damaged, unlisted = file_problems(kept, listed, md5=not skip_md5, threads=threads)
        kept = [path for path in kept if path not in damaged]
    again = repeated({path: path.name for path in kept}, folder)
    kept = [path for path in kept if path not in again]

    ids = _slide_ids({path: names[path] for path in kept})
    made = tuple(
        ImportedSlide(
            slide_id=ids[path],
            path=path,
            patient_id=names[path].patient,
            site=names[path].site,
            labels=patients.labels[names[path].patient],
        )
        for path in sorted(kept, key=lambda path: ids[path])
    )
    told = {one.patient_id for one in made}
    if (
        not made
        and names
        and patients.labels.keys().isdisjoint(one.patient for one in names.values())
    ):
        raise UserError(
            f"--clinical {clinical}: has none of the {len(names):,} slides' patients, so it is the "
            "file of another cohort."
        )
    left = [
        *(LeftOut(_within(path, folder), reason) for path, reason in damaged.items()),
        *(
            LeftOut(_within(path, folder), "is an unfinished download; start gdc-client again")
            for path in unfinished
        ),
        *_not_there(listed, files, unfinished, slides),
        *(LeftOut(_within(path, folder), why) for path, why in (again | reasons).items()),
        *(
            LeftOut(f"patient {patient}", "has no slide that was taken")
            for patient in patients.labels
            if patient not in told
        ),
    ]
    return Found(
        slides=made,
        left_out=tuple(left),
        conflicts=tuple(text for one, text in patients.conflicts.items() if one in told),
        rules=(
            f"{clinical.name}: {'; '.join(patients.said)}",
            *label_rules(conflicts),
            _taken(slides),
            _checked(manifest, skip_md5, kept, set(unlisted)),
            *_sampled(sample_sheet, [path for path in kept if path.name not in samples]),
        ),
        inputs=tuple(one for one in (clinical, manifest, sample_sheet) if one is not None),
    )


def _svs_name(path: Path) -> SlideName | None:
    return slide_name(path.name) if path.suffix.lower() == ".svs" else None


def _instead(files: list[Path]) -> str:
    return f"; what it has is like {files[0].name!r}" if files else ""


def _unfit(
    path: Path,
    name: SlideName | None,
    slides: Kinds,
    sample: GdcSample | None,
    patients: Mapping[str, Mapping[str, str]],
) -> str:
    """Return why a file is left out before it is read, "" if it is not."""
    if name is None:
        return "is not named like a slide of TCGA (TCGA-A1-A0SB-01Z-00-DX1.UUID.svs)"
    if sample is not None and sample.project != PROJECT:
        return f"is of the project {sample.project} by the sample sheet, not {PROJECT}"
    if 10 <= name.sample_type < 20:
        return (
            f"shows normal tissue (sample type {name.sample_type}), which does not have the "
            "tumour's label"
        )
    if name.sample_type in _METASTASES:
        return f"shows a metastasis (sample type 0{name.sample_type}); the labels are the primary's"
    if name.sample_type != 1:
        return f"shows no primary tumour (sample type {name.sample_type:02})"
    if sample is not None and "normal" in sample.sample_type.lower():
        return f"shows {sample.sample_type} by the sample sheet, and a tumour by its name"
    if slides not in ("all", name.kind):
        return f"is a {name.kind} slide (--slides {name.kind} or all)"
    if name.patient not in patients:
        return f"is of patient {name.patient}, who is not in the clinical file"
    return ""


def _slide_ids(names: Mapping[Path, SlideName]) -> dict[Path, str]:
    """Return the barcodes as ids, with the UUID where two scans have one barcode."""
    counts = Counter(name.slide for name in names.values())
    return {
        path: path.stem if counts[name.slide] > 1 else name.slide for path, name in names.items()
    }


def _not_there(
    listed: Iterable[GdcFile], files: Iterable[Path], unfinished: Iterable[Path], slides: Kinds
) -> Iterator[LeftOut]:
    there = {path.name for path in files} | {path.stem for path in unfinished}
    for one in listed:
        name = slide_name(one.name)
        if name is None or name.sample_type != 1 or slides not in ("all", name.kind):
            continue
        if one.name not in there:
            yield LeftOut(one.name, f"is in the manifest, and not in the folder; {AGAIN}")


def _taken(slides: Kinds) -> str:
    which = {"diagnostic": "diagnostic (DX)", "frozen": "frozen (TS, BS, MS)"}.get(slides, "all")
    return (
        f"{which} slides of primary tumours were taken; a patient is the first 12 characters of "
        "the barcode, a site its characters 6 and 7"
    )


def _checked(manifest: Path | None, skip_md5: bool, kept: list[Path], unlisted: set[Path]) -> str:
    if manifest is None:
        return "sizes and contents were not checked, since no --manifest was given"
    what = "sizes, but not contents," if skip_md5 else "sizes and MD5"
    absent = [path for path in kept if path in unlisted]
    return f"{what} of {len(kept) - len(absent):,} slides are those of {manifest.name}" + _but(
        absent, "were not checked"
    )


def _sampled(sheet: Path | None, absent: list[Path]) -> Iterator[str]:
    if sheet is not None:
        yield (
            f"slides of other projects than {PROJECT} were left out by {sheet.name}"
            f"{_but(absent, 'were taken')}"
        )


def _but(absent: list[Path], so: str) -> str:
    names = ", ".join(path.name for path in absent)
    return f"; {len(absent):,} are not in it and {so}: {names}" if absent else ""


def _within(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


SOURCE = Source(
    name="tcga-brca",
    title="TCGA-BRCA: slides of the GDC, with a clinical file.",
    preset="tcga-brca.yaml",
    read=read,
)
