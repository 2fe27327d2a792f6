"""What the importers' tests need of slides: small SVS files, each of its own content, and rows."""

import csv
from functools import cache
from pathlib import Path

import numpy as np

from her2.synthetic.svs import svs_bytes
from tests.unit.test_cli import command


@cache
def slide_bytes(number: int, mpp: float = 0.25) -> bytes:
    """Return an SVS of 1,024 px: pink, with a square whose place and colour are the number's."""
    image = np.full((1024, 1024, 3), (225, 170, 205), np.uint8)
    x, y = 16 * (number % 30), 16 * (number // 30 % 30)
    image[y : y + 40, x : x + 40] = (90, number % 200, 140)
    return svs_bytes(image, mpp=mpp, app_mag=10 / mpp, jpeg_quality=80, extra={})


def put_slide(path: Path, number: int, mpp: float = 0.25) -> Path:
    """Write a slide, whatever its suffix, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(slide_bytes(number, mpp))
    return path


def manifest_rows(out: Path) -> dict[str, dict[str, str]]:
    """Return slide_id -> row of the manifest that an import wrote."""
    with (out / "slides.csv").open(newline="") as stream:
        return {row["slide_id"]: row for row in csv.DictReader(stream)}


def assert_checked(out: Path, name: str) -> str:
    """Assert that `her2 cohort check` accepts what an import wrote, and return what it says."""
    config = out / f"{name}.yaml"
    done = command("cohort", "check", out / "slides.csv", "--config", config)
    assert done.exit_code == 0, done.output
    return done.output
