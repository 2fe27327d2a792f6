"""Stage 1, pre-training data: labelled patches, read and checked before anything trains.

`her2.pretraining.formats` lists the patches of each data set; this module makes a `PatchSet` of
them.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from her2.config import PatchesSection
from her2.core.crashes import reading
from her2.core.errors import SlideError, UserError, first_line, problem_list
from her2.core.files import digest, file_digest
from her2.core.images import open_image
from her2.core.reading import path_problem
from her2.pretraining.formats import LISTERS, SUFFIXES, Listed
from her2.pretraining.patch_set import PatchSet, RgbPatch, class_table

log = logging.getLogger(__name__)

MAX_UNUSABLE = 0.05
"""A set with a larger share of unreadable or non-RGB images is refused."""
IMAGE_BYTES = 1 << 30
"""Largest image file that is read."""
KEEP_BYTES = 1 << 30
"""Limit of the decoded images kept in memory; images beyond it are decoded at each use."""


def read_patch_set(
    name: str, section: PatchesSection, *, scratch: Path, threads: int = 1
) -> PatchSet:
    """List, check and digest a patch set; every image file is decoded once.

    Args:
        name: the set's key in the config, with which every message begins.
        section: the set's section of the config.
        scratch: folder in which a gzipped HDF5 is unpacked once, named by the digest of its bytes.
        threads: number of decoding threads.

    Raises:
        UserError: the set has problems; the message lists all of them.
    """
    where = f"patches.{name}"
    exists = section.path.is_file() if section.format == "csv" else section.path.is_dir()
    if not exists:
        kind = "file" if section.format == "csv" else "folder"
        raise UserError(f"{where}.path: the {kind} {str(section.path)!r} does not exist.")
    if section.format == "pcam":
        from her2.pretraining.pcam import read_pcam  # only this format needs h5py

        return read_pcam(name, section, scratch)
    rows, problems = LISTERS[section.format](section)
    if not rows and not problems:
        problems = [f"no image was found ({', '.join(SUFFIXES)})"]
    if problems:
        raise problem_list(f"{where}: {section.path}: {len(problems)} problem(s)", problems)
    class_names, index, left_out = class_table(where, section, [row.label for row in rows])
    rows = [row for row in rows if row.label in index]
    return _read_images(name, section, rows, class_names, index, left_out, threads)


def read_rgb(path: Path) -> RgbPatch:
    """Decode an image file to RGB uint8 (h, w, 3).

    Raises:
        ValueError: the file is unreadable or not 8-bit RGB. Grey, CMYK and palette images are not
            converted, so that a set with stray ones is noticed. An alpha channel that is opaque
            everywhere is dropped.
    """
    try:
        with open_image(path) as image:
            image.load()
            mode = image.mode
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"cannot be read ({first_line(error)})") from None
    if mode == "RGBA" and (pixels[..., 3] == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    if mode != "RGB":
        raise ValueError(f"is not RGB (its mode is {mode})")
    return pixels


def _digest_and_px(path: Path) -> tuple[str, RgbPatch | str]:
    """Return the SHA-256 of an image file and its px, or the reason why it cannot be used."""
    try:
        return file_digest(path), read_rgb(path)
    except (OSError, ValueError) as error:
        return "", str(error)


class _Images:
    """Function from index to pixels; images that fit into KEEP_BYTES are decoded only once."""

    def __init__(self, paths: list[Path], kept: dict[int, RgbPatch]) -> None:
        self.paths = paths
        self.kept = kept

    def __call__(self, index: int) -> RgbPatch:
        found = self.kept.get(index)
        try:
            return read_rgb(self.paths[index]) if found is None else found
        except ValueError as error:
            raise UserError(
                f"{self.paths[index]}: {error}, though it could be read when the job began; run "
                "it again."
            ) from None


def _read_images(
    name: str,
    section: PatchesSection,
    rows: list[Listed],
    class_names: tuple[str, ...],
    index: dict[str, int],
    left_out: dict[str, int],
    threads: int,
) -> PatchSet:
    where = f"patches.{name}"

    def inspect(row: Listed) -> tuple[str, RgbPatch | str]:
        try:
            if problem := path_problem(row.path, limit_bytes=IMAGE_BYTES):
                return "", problem
            with reading(row.id):
                return _digest_and_px(row.path)
        except SlideError as error:
            return "", str(error)

    usable: list[Listed] = []
    contents: list[str] = []
    unusable: list[str] = []
    kept: dict[int, RgbPatch] = {}
    kept_bytes = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="reader") as pool:
        # disable=None shows the bar on a terminal but not in a log file.
        found = tqdm(pool.map(inspect, rows), where, len(rows), unit="patch", disable=None)
        for row, (content, pixels) in zip(rows, found, strict=True):
            if isinstance(pixels, str):
                unusable.append(f"{row.id}: {pixels}")
                continue
            if kept_bytes + pixels.nbytes <= KEEP_BYTES:
                kept[len(usable)] = pixels
                kept_bytes += pixels.nbytes
            usable.append(row)
            contents.append(content)
    _check_unusable(where, unusable, len(rows))
    labels = np.array([index[row.label] for row in usable], np.int64)
    counts = np.bincount(labels, minlength=len(class_names))
    if (counts == 0).any():
        empty = ", ".join(n for n, count in zip(class_names, counts, strict=True) if not count)
        raise UserError(f"{where}: no usable image of class {empty}.")
    table = [
        [row.id, class_names[label], row.case, row.part, content]
        for row, label, content in zip(usable, labels.tolist(), contents, strict=True)
    ]
    return PatchSet(
        name=name,
        format=section.format,
        class_names=class_names,
        ids=tuple(row.id for row in usable),
        labels=labels,
        cases=tuple(row.case for row in usable),
        parts=tuple(row.part for row in usable),
        read=_Images([row.path for row in usable], kept),
        digest=digest({"classes": list(class_names), "patches": table}),
        mpp=section.mpp,
        left_out=left_out,
        unusable=tuple(unusable),
    )


def _check_unusable(where: str, unusable: list[str], total: int) -> None:
    if not unusable:
        return
    headline = f"{where}: {len(unusable)} of {total} images cannot be used"
    if len(unusable) > MAX_UNUSABLE * total:
        raise problem_list(
            f"{headline}, more than {MAX_UNUSABLE:.0%}; fix or remove them", unusable, limit=10
        )
    log.warning("%s and are left out: %s", headline, "; ".join(unusable[:10]))
