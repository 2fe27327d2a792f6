"""Masks in the forms that programs write, for the fuzzer."""

from pathlib import Path

from her2.explanation.truth import truth_mask
from her2.slides.masks import read_mask
from tests.unit.test_maskfile import SHAPE, SIZE_PX, variants


def cases(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in variants(folder)}


def read(path: Path) -> None:
    read_mask(path, SHAPE, size_px=SIZE_PX)
    truth_mask(path, SHAPE, size_px=SIZE_PX)
