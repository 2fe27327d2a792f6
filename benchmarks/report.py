"""Size and build time of the report for large cohorts.

    python benchmarks/report.py [--slides 500 10000] [--encoders 5]

Makes the results folder of a simulated run (tables computed by the stages from random predictions,
and textured pictures, most of them copies), builds the report and prints its size, the time and the
peak memory of the building process. Limits at 500 slides: 15 MB, 60 s.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from her2.config.jobs import ReportSpec, dump  # noqa: E402 the project of this folder
from tests.unit.report_maker import Cohort  # noqa: E402

DRAWN = 8
TEXTURES = 12


def texture(path: Path, width: int, height: int, seed: int) -> None:
    """Write a picture that compresses about as well as tissue."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(120, 255, (height // 24, width // 24, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    picture += generator.normal(0, 14, (height, width, 1)).astype(np.int16)
    cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8))


def make_results(folder: Path, slides: int, encoders: int) -> ReportSpec:
    """Write the results folder of `slides` slides, one per patient."""
    names = tuple(f"encoder{index}" for index in range(encoders))
    cohort = Cohort(
        encoders=names, labels=("0", "1", "2") * (slides // 3), signal=0.5, synthetic=True
    )
    spec = cohort.write(folder)
    with tempfile.TemporaryDirectory() as scratch:
        thumbnails = [Path(scratch) / f"{index}.jpg" for index in range(TEXTURES)]
        for index, path in enumerate(thumbnails):
            texture(path, 1024, 768, index)
        for index, name in enumerate(cohort.names):
            target = folder / "tiles" / "224px-0.5mpp" / f"{name}.qc.jpg"
            target.write_bytes(thumbnails[index % TEXTURES].read_bytes())
    for name in names:
        heatmaps = folder / "heatmaps" / "score" / name / "abmil"
        listed = []
        for index, slide in enumerate(cohort.names[:DRAWN]):
            texture(heatmaps / f"{slide}.png", 1800, 700, index)
            listed.append(
                {"slide_id": slide, "label": "0", "fold": 0, "picture": f"{slide}.png",
                 "panels": ["thumbnail", "attention", "truth"], "tiles": 2000, "um_per_px": 8.0,
                 "files": [], "tile_strip": f"{slide}.png"}
            )  # fmt: skip
        (heatmaps / "heatmaps.json").write_text(json.dumps(listed))
        scores = [
            {"label": label, "slides": 100, "patients": 100, "picture": f"{cohort.names[0]}.png"}
            for label in ("0", "1+", "2+")
        ]
        (heatmaps / "tiles.json").write_text(json.dumps(scores))
    return spec


def build_apart(spec: ReportSpec, folder: Path) -> tuple[float, float]:
    """Build the report in a separate process, and return its seconds and peak MB."""
    code = (
        "import resource, sys; from pathlib import Path;"
        "from her2.report.build import build_report;"
        "from her2.config.jobs import ReportSpec, load;"
        "build_report(load(ReportSpec, Path(sys.argv[1]).read_text()), Path(sys.argv[2]),"
        " Path(sys.argv[2]) / 'report' / 'report.html');"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    job = folder.with_suffix(".json")
    job.write_text(dump(spec))
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(job), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return time.perf_counter() - begun, float(done.stdout)


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, nargs="+", default=[500, 10_000])
    parser.add_argument("--encoders", type=int, default=5)
    asked = parser.parse_args()
    print(f"{'slides':>8}{'encoders':>10}{'MB':>8}{'s':>8}{'peak MB':>9}")
    for slides in asked.slides:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "results"
            spec = make_results(folder, slides, asked.encoders)
            seconds, memory = build_apart(spec, folder)
            size = (folder / "report" / "report.html").stat().st_size / 1e6
        print(f"{slides:>8,}{asked.encoders:>10}{size:>8.1f}{seconds:>8.1f}{memory:>9,.0f}")


if __name__ == "__main__":
    main()
