"""Public cohorts in the forms in which they are published, with a few drawn slides each.

Each function writes a cohort into a folder, as a user has it after the download. A `Picture` draws
the slides: `plain` ones for whatever stops before tiling, or `tissue`.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2.synthetic import draw_region, slide_generator, slide_params
from her2.synthetic.svs import svs_bytes
from tests.mirax import write_mirax
from tests.unit.sheet_makers import write_xlsx

Picture = Callable[[str, str], NDArray[np.uint8]]
"""Name of a slide, score of its patient -> RGB (h, w, 3) uint8."""

SCORES = ("0", "1+", "2+", "3+")
TCGA_SITES = ("A1", "A2", "A7", "BH", "E2", "GM")
CLINICAL = "nationwidechildrens.org_clinical_patient_brca.txt"


def plain(name: str, score: str) -> NDArray[np.uint8]:
    """Draw 512 px whose colour is the name's: the least that holds four tiles of each preset."""
    colour = np.frombuffer(uuid5(NAMESPACE_DNS, name).bytes[:3], np.uint8)
    return np.broadcast_to(colour, (512, 512, 3)).copy()


def tissue(name: str, score: str) -> NDArray[np.uint8]:
    """Draw 640 px of tissue as at 0.5 um/px."""
    params = slide_params(slide_id=name, patient_id=name, her2=score, site="north", seed=3)
    return draw_region(slide_generator(3, name, name), params, 640, 0.5)[0]


def is_positive(score: str) -> bool:
    """Return whether a patient of this score is positive here."""
    return score in ("2+", "3+")


def write_all(data: Path, picture: Picture) -> None:
    """Write every cohort into a folder, where docs/cohorts.md has it."""
    tcga_brca(data / "tcga-brca", picture)
    yale(data / "yale", picture)
    herohe(data / "herohe", picture, test=20)
    bcnb(data / "BCNB", picture)
    warwick(data / "warwick", picture)
    export(data / "export.xlsx", data / "scans", picture)


def tcga_brca(folder: Path, picture: Picture, sites: tuple[str, ...] = TCGA_SITES) -> Path:
    """Write a download of the GDC with four patients of each site, and the clinical file beside it.

    Returns:
        The clinical file: a BCR Biotab with three header rows.
    """
    names = "bcr_patient_uuid bcr_patient_barcode tissue_source_site her2_status_by_ihc"
    header = [*names.split(), "her2_ihc_score", "her2_fish_status"]
    level = "her2_immunohistochemistry_level_result"
    rows = [header, [*header[:4], level, header[5]], ["CDE_ID:"] * len(header)]
    status = {"0": "Negative", "1+": "Negative", "2+": "Equivocal", "3+": "Positive"}
    for number, (site, score) in enumerate(itertools.product(sites, SCORES)):
        patient = f"TCGA-{site}-{number:04}"
        fish = "Positive" if score == "2+" else "[Not Evaluated]"
        uuid = str(uuid5(NAMESPACE_DNS, patient))
        rows.append([uuid, patient, site, status[score], score, fish])
        place = folder / uuid
        (place / "logs").mkdir(parents=True)
        name = f"{patient}-01Z-00-DX1.{uuid.upper()}.svs"
        (place / "logs" / f"{name}.parcel").write_bytes(b"\0")
        (place / name).write_bytes(_svs(picture(patient, score)))
    clinical = folder.parent / CLINICAL
    clinical.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    return clinical


def yale(folder: Path, picture: Picture, cases: int = 12, responses: int = 24) -> None:
    """Write the package of TCIA: positive and as many negative cases, and responses of others.

    Each slide has a region that is the whole of it.
    """
    root = folder / "PKG-HER2tumorROIs_v3"
    her2, response = (root / f"Yale_{one}_cohort" for one in ("HER2", "trastuzumab_response"))
    for side, score in (("Pos", "3+"), ("Neg", "0")):
        for case in range(1, cases + 1):
            _with_region(her2, f"Her2{side}_Case_{case:02}", picture, score)
    if not responses:
        return
    rows = [("Patient", "Responder")]
    for case in range(1, responses + 1):
        _with_region(response, f"Pt {case}", picture, "3+")
        rows.append((f"Pt {case}", ("responder", "non-responder")[case % 2]))
    sheet = response / "Yale_trastuzumab_response_cohort_metadata_clean.xlsx"
    write_xlsx(sheet, {"Sheet1": rows}, strict=True)


def _with_region(root: Path, stem: str, picture: Picture, score: str) -> None:
    image = picture(stem, score)
    for part in ("SVS", "Annotations"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "SVS" / f"{stem}.svs").write_bytes(_svs(image))
    h, w = image.shape[:2]
    corners = ((0, 0), (w, 0), (w, h), (0, h))
    text = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
    (root / "Annotations" / f"{stem}.xml").write_text(
        '<Annotations MicronsPerPixel="0.5"><Annotation Id="1"><Regions><Region Id="1" Type="0" '
        f'NegativeROA="0"><Vertices>{text}</Vertices></Region></Regions></Annotation></Annotations>'
    )


def herohe(folder: Path, picture: Picture, training: int = 20, test: int = 8) -> None:
    """Write MIRAX slides of both parts, whose numbers overlap, and the two ground truths."""
    header = (
        "Case", "Immunohistochemistry (0-3)", "ISH Group",
        "Final Result (Ground truth) (Negative/Positive)", "Age", "Laboratory",
    )  # fmt: skip
    truths = {}
    for part, count in (("training", training), ("test", test)):
        rows: list[tuple[int | str, ...]] = [header]
        (folder / part).mkdir(parents=True)
        for case in range(1, count + 1):
            score = SCORES[case % 4]
            positive = "Positive" if is_positive(score) else "Negative"
            group = 1 if is_positive(score) else 5
            rows.append((case, case % 4, group, positive, 40 + case, f"Lab {case % 2}"))
            image = picture(f"{part}{case}", score).repeat(2, axis=0).repeat(2, axis=1)
            path = folder / part / f"{case}.mrxs"
            write_mirax(path, image, mpp=0.2425, tile=len(image) // 4)
        truths[part] = rows
    lines = [";".join(map(str, row)) for row in truths["training"]]
    path = folder / "Training (ground truth).csv"
    path.write_text("\r\n".join(lines) + "\r\n", encoding="cp1252")
    write_xlsx(folder / "Test (ground truth).xlsx", {"Sheet1": truths["test"]})


def bcnb(folder: Path, picture: Picture, number: int = 24) -> None:
    """Write flat JPEG slides with their polygons, the clinical workbook and the official split."""
    slides, splits = folder / "WSIs", folder / "dataset-splitting"
    for one in (slides, splits):
        one.mkdir(parents=True)
    columns = ("Patient ID", "Age(years)", "HER2", "HER2 Expression")
    rows: list[tuple[int | str, ...]] = [columns]
    ids: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for case in range(1, number + 1):
        score = SCORES[case % 4]
        rows.append((case, 40, "Positive" if is_positive(score) else "Negative", score))
        image = picture(str(case), score)
        Image.fromarray(image).save(slides / f"{case}.jpg", quality=90)
        h, w = image.shape[:2]
        region = {"vertices": [[0, 0], [w, 0], [w, h], [0, h]]}
        (slides / f"{case}.json").write_text(json.dumps({"positive": [region], "negative": []}))
        ids[("train", "val", "test")[(case - 1) // 4 % 3]].append(case)
    write_xlsx(folder / "patient-clinical-data.xlsx", {"Sheet1": rows})
    for part, listed in ids.items():
        text = "".join(f"{one}\r\n" for one in listed)
        (splits / f"{part}_id.txt").write_bytes(text.encode())


def warwick(folder: Path, picture: Picture, cases: int = 24) -> None:
    """Write H&E and IHC slides, SVS named like NDPI, and the truth of all cases but one."""
    folder.mkdir(parents=True)
    share = "PERCENTAGE CELLS WITH COMPLETE MEMBRANE STAINING IRRESPECTIVE OF INTENSITY"
    rows: list[tuple[int | str, ...]] = [("CaseNo", "HeR2 SCORE", share)]
    for case in range(1, cases + 1):
        score = SCORES[case % 4]
        for stain in ("HE", "Her2" if case == 7 else "HER2"):
            image = picture(f"{case}{stain}", score)
            (folder / f"{case:02}_{stain}.ndpi").write_bytes(_svs(image))
        if case < cases:
            rows.append((case, case % 4, 10 * case % 100))
    write_xlsx(folder / "groundTruth.xlsx", {"Sheet1": rows})


def export(sheet: Path, slides: Path, picture: Picture, cases: int = 24) -> None:
    """Write a hospital's workbook, with a title and a sum, and the slides of its cases."""
    slides.mkdir(parents=True)
    rows: list[tuple[int | str | None, ...]] = [
        ("Mammakarzinome 2023", None, None),
        ("Fallnummer", "Score HER2", "Bemerkung"),
    ]
    for case in range(1, cases + 1):
        score = SCORES[case % 4]
        name = f"H23{case:05} A1"
        rows.append((name, f"Score {score}", None))
        (slides / f"{name} HE.svs").write_bytes(_svs(picture(name, score)))
    rows.append(("Summe", cases, None))
    write_xlsx(sheet, {"Export": rows})


def _svs(image: NDArray[np.uint8]) -> bytes:
    return svs_bytes(image, mpp=0.5, app_mag=20, jpeg_quality=85, extra={})
