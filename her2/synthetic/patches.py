"""Demo patch sets for pre-training encoders: drawn IHC, H&E and non-medical pictures.

The three are as different as the real ones: the IHC set shows the stain that defines the score on
tumour whose nuclei say nothing of it, the H&E set the morphology of the demo slides on other
patients, the natural set no tissue at all. None of the demo cohort's patients is in any of them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2.core.files import atomic_path, write_text
from her2.synthetic import DEVELOPMENT_SITES, HER2_SHARE, slide_generator, slide_params
from her2.synthetic.ihc import SCORES, draw_ihc
from her2.synthetic.natural import NATURAL, draw_natural
from her2.synthetic.tissue import draw_region

PatchKind = Literal["ihc", "he", "natural"]
RgbImage = NDArray[np.uint8]
Case = tuple[str, list[tuple[str, RgbImage]]]
"""Case id, and its patches with their labels."""

LABELS: dict[PatchKind, tuple[str, ...]] = {
    "ihc": tuple(SCORES),
    "he": ("negative", "positive", "stroma"),
    "natural": tuple(NATURAL),
}
TABLE_NAME = "labels.csv"
OVERSAMPLING = 2  # tissue is drawn finer than the patches, and averaged as a scanner's pyramid is
IHC_SIDE, NATURAL_SIDE = 6, 2  # patches along a region or photograph
HE_SIDE_UM = 1024.0
PURE, ABSENT = 0.6, 0.06  # share of a patch that its class fills at least, and others at most
CASES_A_CLASS = 16  # about; a class never comes from a few cases alone


def draw_patch_set(
    kind: PatchKind,
    folder: Path,
    *,
    n_per_class: int,
    size_px: int = 96,
    mpp: float = 1.0,
    seed: int,
) -> Path:
    """Draw a labelled patch set: `{label}/{case}-{number}.png` and `labels.csv`, written last.

    The table has the columns path, label, case_id. Same arguments, same bytes.

    Args:
        kind: ihc (scores 0 to 3+), he (positive and negative tumour nests, stroma) or natural.
        folder: of the set.
        n_per_class: patches of each label.
        size_px: px a side.
        mpp: um/px; the natural pictures have none.
        seed: of everything.

    Returns:
        The path of the table.
    """
    draw = {"ihc": _ihc_cases, "he": _he_cases, "natural": _natural_cases}[kind]
    cap = max(4, -(-n_per_class // CASES_A_CLASS))
    rows: list[tuple[str, str, str]] = []
    found: Counter[str] = Counter()
    for case_id, patches in draw(size_px, mpp, seed):
        here: Counter[str] = Counter()
        for label, image in patches:
            if found[label] >= n_per_class or here[label] >= cap:
                continue
            path = f"{label}/{case_id}-{here[label]:02d}.png"
            _write_png(folder / path, image)
            rows.append((path, label, case_id))
            here[label] += 1
            found[label] += 1
        if all(found[label] >= n_per_class for label in LABELS[kind]):
            break
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "case_id"))
    writer.writerows(sorted(rows))
    write_text(folder / TABLE_NAME, text.getvalue())
    return folder / TABLE_NAME


def _ihc_cases(size_px: int, mpp: float, seed: int) -> Iterator[Case]:
    """Yield cases without end, taking the scores in turn; a case is a field inside its tumour."""
    fine_px = IHC_SIDE * size_px * OVERSAMPLING
    number = 0
    while True:
        for score in SCORES:
            number += 1
            case_id = f"ihc-{number:03d}"
            rng = slide_generator(seed, case_id, case_id)
            rgb, nest = draw_ihc(rng, score, fine_px, mpp / OVERSAMPLING)
            share = _patch_shares(nest, size_px * OVERSAMPLING, size_px * OVERSAMPLING)
            corners = np.argwhere(share >= PURE) * size_px
            yield case_id, _cut(rgb, [(score, corners)], size_px, rng)


def _he_cases(size_px: int, mpp: float, seed: int) -> Iterator[Case]:
    """Yield patients `pre-...` without end, drawn like the demo's slides but without artefacts."""
    side_px = round(HE_SIDE_UM / mpp) * OVERSAMPLING
    fine_mpp = mpp / OVERSAMPLING
    number = 0
    while True:
        for i, her2 in enumerate(HER2_SHARE):
            number += 1
            case_id = f"pre-{number:03d}"
            site = DEVELOPMENT_SITES[(number + i // 2) % len(DEVELOPMENT_SITES)]
            look = slide_params(
                slide_id=case_id, patient_id=case_id, her2=her2, site=site, seed=seed
            )
            look = replace(look, pen=None, fold=False)
            rng = slide_generator(seed, case_id, case_id)
            rgb, plan = draw_region(rng, look, side_px, fine_mpp)
            fine, stride = size_px * OVERSAMPLING, size_px // 2 * OVERSAMPLING
            tissue, nest, positive = (
                _patch_shares(mask, fine, stride)
                for mask in (plan.tissue, plan.nest, plan.positive)
            )
            negative = nest - positive
            chosen = {
                "negative": (negative >= PURE) & (positive <= ABSENT),
                "positive": (positive >= PURE) & (negative <= ABSENT),
                "stroma": (tissue >= PURE) & (nest <= ABSENT),
            }
            corners = [
                (label, np.argwhere(mask) * (size_px // 2)) for label, mask in chosen.items()
            ]
            yield case_id, _cut(rgb, corners, size_px, rng)


def _natural_cases(size_px: int, mpp: float, seed: int) -> Iterator[Case]:
    """Yield photographs without end, taking the kinds in turn; a case is a photograph."""
    number = 0
    while True:
        for kind in NATURAL:
            number += 1
            case_id = f"photo-{number:04d}"
            rng = slide_generator(seed, case_id, case_id)
            rgb = draw_natural(rng, kind, NATURAL_SIDE * size_px)
            corners = np.argwhere(np.ones((NATURAL_SIDE, NATURAL_SIDE))) * size_px
            yield case_id, [(kind, rgb[y : y + size_px, x : x + size_px]) for y, x in corners]


def _patch_shares(mask: NDArray[np.bool_], size_px: int, stride_px: int) -> NDArray[np.float64]:
    """Return the share of the mask in each patch of a grid, (rows, columns)."""
    total = cv2.integral(mask.astype(np.uint8))
    low = np.arange(0, mask.shape[0] - size_px + 1, stride_px)
    high = low + size_px
    inside = total[np.ix_(high, high)] - total[np.ix_(low, high)]
    inside = inside - total[np.ix_(high, low)] + total[np.ix_(low, low)]
    return np.asarray(inside / size_px**2)


def _cut(
    fine: RgbImage,
    corners: list[tuple[str, NDArray[np.int64]]],
    size_px: int,
    rng: np.random.Generator,
) -> list[tuple[str, RgbImage]]:
    """Cut patches at corners (n, 2), y and x, of the image at its final um/px, in random order."""
    side = fine.shape[0] // OVERSAMPLING
    rgb = np.asarray(cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    return [
        (label, rgb[y : y + size_px, x : x + size_px])
        for label, found in corners
        for y, x in rng.permutation(found)
    ]


def _write_png(path: Path, image: RgbImage) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, compress_level=4)
