"""Demo cohort: real pyramidal SVS files of drawn tissue with a planted, documented HER2 signal.

The signal is the share of the tumour-nest area that shows the HER2-positive morphology
(`HER2_SHARE`). Everything else (outline, amount of tumour, stain, fat, pen marks, folds, size) is
drawn from generators that never see the score, and the mean colour of positive and negative nest
areas of a slide is the same. So a model that scores well has read texture, and a model of colour
or tissue amount stays at chance.

A second, smaller cohort comes from another hospital (`east_manifest`): its patients show the same
signal, but its laboratory stains otherwise, its scanner has other um/px, its sections are smaller,
and low scores are more frequent. No model of the demo has seen it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from her2.core.files import atomic_path
from her2.synthetic.artefacts import PENS
from her2.synthetic.plan import RegionPlan, TissueParams, plan_region
from her2.synthetic.svs import mask_png_bytes, svs_bytes
from her2.synthetic.tissue import draw_region

__all__ = [
    "DEVELOPMENT_SITES",
    "EAST_PATIENTS",
    "HER2_SHARE",
    "MASK_DOWNSAMPLE",
    "SITES",
    "RegionPlan",
    "SiteLook",
    "TissueParams",
    "demo_manifest",
    "draw_region",
    "draw_slide",
    "east_manifest",
    "plan_region",
    "slide_generator",
    "slide_params",
]

# Mean share of the tumour-nest area with HER2-positive morphology. Patients of one score spread
# around it with a standard deviation of SHARE_SPREAD * sqrt(p (1 - p)).
HER2_SHARE = {"0": 0.05, "1+": 0.25, "2+": 0.50, "3+": 0.80}
SHARE_SPREAD = 0.12
MASK_DOWNSAMPLE = 8
# Chosen among a few editions because its pen marks and folds fall on all scores of the default
# cohort: with one slide in six marked, a score can end up without any by chance.
EDITION = "l"
PEN_CHANCE = FOLD_CHANCE = 1 / 6


@dataclass(frozen=True)
class SiteLook:
    """A laboratory and its scanner: stain vectors (R, G, B), strengths, glass, JPEG quality.

    Level 0 has `mpp` um/px under an objective of `magnification`. `slide_size` is the side of its
    slides as a multiple of the side that is asked for.
    """

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    haematoxylin_strength: float
    eosin_strength: float
    glass: tuple[float, float, float]
    jpeg_quality: int
    mpp: float = 0.5
    magnification: float = 20
    slide_size: float = 1.0

    def side_px(self, side_px: int) -> int:
        """Return the px along a slide, for `side_px` at the um/px of development."""
        return round(side_px * DEVELOPMENT_MPP / self.mpp * self.slide_size)


DEVELOPMENT_MPP = 0.5
DEVELOPMENT_SITES = ("north", "south")
"""The laboratories of the demo's cohort, and of the H&E patches that encoders learn from."""

# The vectors of Macenko 2009 (north) and a bluer haematoxylin with a more magenta eosin (south).
# The other hospital (east) stains more strongly, with a browner eosin, and scans through an
# objective of 10x. Models that read texture lose most by the
# stain: in the stain of north, its slides are told apart as well as those of development. The
# stain was chosen so that the best encoder of the demo loses clearly, but not all.
SITES = {
    "north": SiteLook((0.60, 0.72, 0.34), (0.15, 0.80, 0.46), 1.0, 0.92, (243, 242, 243), 88),
    "south": SiteLook((0.68, 0.69, 0.26), (0.09, 0.84, 0.30), 0.88, 1.08, (245, 243, 239), 82),
    "east": SiteLook(
        (0.555, 0.735, 0.39), (0.19, 0.78, 0.54), 1.16, 1.05, (240, 238, 232), 75,
        mpp=1.0, magnification=10, slide_size=0.77,
    ),
}  # fmt: skip

EAST_PATIENTS = {"0": 9, "1+": 5, "2+": 5, "3+": 5}
"""Patients of each score at the other hospital; in development, all scores are as frequent."""


def demo_manifest(n_patients: int = 48, seed: int = 2411) -> list[dict[str, str]]:
    """Return the rows of the demo's slides.csv.

    Columns are slide_id, path (relative to the cohort root), patient_id, her2 and site.

    Scores are balanced over patients, sites within each score; every fourth patient of a score
    has two slides. Patient numbers are shuffled, so an id tells nothing.
    """
    scores = list(HER2_SHARE)
    numbers = np.random.default_rng([seed, n_patients]).permutation(n_patients) + 1
    rows = []
    for i, number in enumerate(numbers.tolist()):
        score, nth = i % len(scores), i // len(scores)
        # nth // 4 reverses the alternation, or all patients with two slides would share one site.
        site = DEVELOPMENT_SITES[(nth + nth // 4 + score) % len(DEVELOPMENT_SITES)]
        patient_id = f"demo-{number:03d}"
        for letter in "ab" if nth % 4 == 3 else "a":
            slide_id = f"{patient_id}-{letter}"
            rows.append(_row(slide_id, patient_id, scores[score], site))
    return sorted(rows, key=lambda row: row["slide_id"])


def east_manifest(seed: int = 2411) -> list[dict[str, str]]:
    """Return the rows of the demo's east.csv: the other hospital's patients, with one slide each.

    The columns are those of `demo_manifest`. An id tells nothing.
    """
    scores = [her2 for her2, count in EAST_PATIENTS.items() for _ in range(count)]
    numbers = np.random.default_rng([seed, len(scores)]).permutation(len(scores)) + 1
    rows = []
    for her2, number in zip(scores, numbers.tolist(), strict=True):
        patient_id = f"east-{number:03d}"
        rows.append(_row(f"{patient_id}-a", patient_id, her2, "east"))
    return sorted(rows, key=lambda row: row["slide_id"])


def _row(slide_id: str, patient_id: str, her2: str, site: str) -> dict[str, str]:
    path = f"slides/{slide_id}.svs"
    return {"slide_id": slide_id, "path": path, "patient_id": patient_id, "her2": her2,
            "site": site}  # fmt: skip


def slide_params(
    *, slide_id: str, patient_id: str, her2: str, site: str, seed: int
) -> TissueParams:
    """Draw the look of one slide: stain and HER2 share per patient, artefacts per slide."""
    if her2 not in HER2_SHARE:
        raise ValueError(f"her2 is {her2!r}; legal are {', '.join(HER2_SHARE)}")
    if site not in SITES:
        raise ValueError(f"site is {site!r}; legal are {', '.join(SITES)}")
    look = SITES[site]
    patient = _generator(seed, "patient", patient_id)
    slide = _generator(seed, "slide-look", patient_id, slide_id)
    strength_h, strength_e = np.exp(patient.normal(0.0, 0.07, 2) + slide.normal(0.0, 0.015, 2))
    shift_h, shift_e = patient.normal(0.0, 0.015, (2, 3))
    mean = HER2_SHARE[her2]
    # One draw per patient whatever the score, so that the score changes nothing else.
    share = mean + SHARE_SPREAD * (mean * (1 - mean)) ** 0.5 * float(patient.normal())
    share += 0.01 * float(slide.normal())
    pen = str(slide.choice(list(PENS))) if slide.random() < PEN_CHANCE else None
    return TissueParams(
        haematoxylin=_shifted(look.haematoxylin, shift_h),
        eosin=_shifted(look.eosin, shift_e),
        haematoxylin_strength=look.haematoxylin_strength * float(strength_h),
        eosin_strength=look.eosin_strength * float(strength_e),
        glass=look.glass,
        her2_share=float(np.clip(share, 0.01, 0.97)),
        pen=pen,
        fold=bool(slide.random() < FOLD_CHANCE),
    )


def draw_slide(
    *,
    slide_id: str,
    patient_id: str,
    her2: str,
    site: str,
    seed: int,
    slide_path: Path,
    mask_path: Path,
    side_px: int,
) -> None:
    """Draw one slide: an SVS (OpenSlide vendor `aperio`) and a PNG mask at 1/8 of level 0.

    The mask is 255 on HER2-positive morphology. Same arguments, same bytes. `side_px` is the side
    of a slide of development; from it follows that of a site whose slides have another size.
    """
    params = slide_params(slide_id=slide_id, patient_id=patient_id, her2=her2, site=site, seed=seed)
    look = SITES[site]
    generator = slide_generator(seed, patient_id, slide_id)
    rgb, plan = draw_region(generator, params, look.side_px(side_px), look.mpp)
    svs = svs_bytes(
        rgb,
        mpp=look.mpp,
        app_mag=look.magnification,
        jpeg_quality=look.jpeg_quality,
        extra={
            "Filename": slide_id,
            "ScanScope ID": f"demo-{site}",
            "Title": "synthetic, not a patient",
        },
    )
    with atomic_path(mask_path) as temporary:
        temporary.write_bytes(mask_png_bytes(plan.positive, MASK_DOWNSAMPLE))
    with atomic_path(slide_path) as temporary:
        temporary.write_bytes(svs)


def slide_generator(seed: int, patient_id: str, slide_id: str) -> np.random.Generator:
    """Return the generator of one slide's tissue, which depends on neither score nor site."""
    return _generator(seed, "tissue", patient_id, slide_id)


def _generator(seed: int, *names: str) -> np.random.Generator:
    # Not Python's own hash, which changes from one process to the next.
    digest = hashlib.sha256("\0".join([EDITION, str(seed), *names]).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def _shifted(vector: tuple[float, float, float], shift: np.ndarray) -> tuple[float, float, float]:
    r, g, b = (float(v + s) for v, s in zip(vector, shift, strict=True))
    return r, g, b
