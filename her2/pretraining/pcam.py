"""Stage 1, pre-training data: PatchCamelyon, read one patch at a time from its HDF5 files."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock

import h5py
import numpy as np
from numpy.typing import NDArray

from her2.config import PatchesSection
from her2.core.errors import UserError, first_line, problem_list
from her2.core.files import digest, file_digest
from her2.core.hdf5 import FILE_BYTES, dataset, open_checked, unpack, whole_numbers
from her2.core.reading import path_problem
from her2.core.spelling import folded_id
from her2.pretraining.formats import Part, look_alikes_in, read_csv
from her2.pretraining.patch_set import PatchSet, RgbPatch, class_table

log = logging.getLogger(__name__)

_PCAM = "camelyonpatch_level_2_split_{part}_{what}"
_PCAM_PARTS: tuple[Part, ...] = ("train", "valid", "test")
_PCAM_LABELS = {0: "normal", 1: "tumour"}


def read_pcam(name: str, section: PatchesSection, scratch: Path) -> PatchSet:
    """Open PatchCamelyon (Veeling 2018): HDF5 pairs of images and labels; a case is a slide.

    The train pair is required; valid and test are used if present. Without the meta files the
    cases are unknown.

    Raises:
        UserError: files are missing or damaged, or their lengths differ; all problems are listed.
    """
    problems: list[str] = []
    pairs = [
        pair
        for part in _PCAM_PARTS
        if (pair := _pcam_pair(section.path, part, scratch, problems)) is not None
    ]
    named = (case for pair in pairs for case in pair.cases or () if case is not None)
    problems += look_alikes_in("wsi", named, folded_id)
    if problems or not pairs:
        raise problem_list(
            f"patches.{name}: {section.path}: {len(problems)} problem(s)", problems, limit=20
        )
    known = all(pair.cases is not None for pair in pairs)
    if not known:
        log.warning(
            "patches.%s: not every part has a meta csv, so the source slides are unknown", name
        )
    labels = [_PCAM_LABELS[value] for pair in pairs for value in pair.labels.tolist()]
    class_names, index, left_out = class_table(f"patches.{name}", section, labels)
    keep = np.array([label in index for label in labels])
    numbers = [(i, row) for i, pair in enumerate(pairs) for row in range(len(pair.labels))]
    cases = [case for pair in pairs for case in pair.cases or [None] * len(pair.labels)]
    rows = np.flatnonzero(keep).tolist()
    return PatchSet(
        name=name,
        format="pcam",
        class_names=class_names,
        ids=[f"{pairs[i].part}/{row}" for i, row in (numbers[j] for j in rows)],
        labels=np.array([index[labels[j]] for j in rows], np.int64),
        cases=[cases[j] if known else None for j in rows],
        parts=[pairs[numbers[j][0]].part for j in rows],
        read=_Hdf5Patches([pair.x for pair in pairs], np.array(numbers)[rows]),
        digest=digest({"classes": [class_names, index], "files": [p.digests for p in pairs]}),
        mpp=section.mpp,
        left_out=left_out,
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    part: Part
    x: Path
    labels: NDArray[np.int64]
    cases: list[str | None] | None
    digests: list[str]


def _pcam_pair(root: Path, part: Part, scratch: Path, problems: list[str]) -> _Pair | None:
    """Open one part of PatchCamelyon, and add its problems to `problems`."""
    stems = {what: _PCAM.format(part=part, what=what) for what in ("x", "y", "meta")}
    found = {what: _plain_or_gzipped(root / f"{stems[what]}.h5") for what in ("x", "y")}
    absent = [f"{stems[what]}.h5[.gz]: missing" for what, path in found.items() if path is None]
    if absent:
        if part == "train" or len(absent) == 1:
            problems += absent
        return None
    paths = {what: path for what, path in found.items() if path is not None}
    refused = [
        f"{path}: {problem}"
        for path in paths.values()
        if (problem := path_problem(path, limit_bytes=FILE_BYTES))
    ]
    if refused:
        problems += refused
        return None
    files: dict[str, tuple[Path, str]] = {}
    reading = "x"
    try:
        for reading, path in paths.items():
            files[reading] = _unpacked(path, scratch)
        with open_checked(files["y"][0]) as y:
            labels = whole_numbers(dataset(y, "y"))
        reading = "x"
        with open_checked(files["x"][0]) as x:
            images = dataset(x, "x")
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
                problems.append(
                    f"{found['x']}: x is {images.dtype} {images.shape}, not uint8 (n, h, w, 3)"
                )
            if len(images) != len(labels):
                problems.append(
                    f"{found['x']} has {len(images)} patches, {found['y']} has {len(labels)} "
                    "labels; download both again"
                )
    except UserError:  # the disk is full
        raise
    except Exception as error:  # h5py raises any type of error on a damaged file
        problems.append(
            f"{paths[reading]}: cannot be read ({first_line(error)}); download it again"
        )
        for what, (plain, _) in files.items():
            if plain != paths[what]:
                plain.unlink(missing_ok=True)  # nobody else will ask for what it was unpacked from
        return None
    meta = root / f"{stems['meta']}.csv"
    if strange := sorted(set(np.unique(labels).tolist()) - set(_PCAM_LABELS)):
        problems.append(f"{found['y']}: has labels {strange}; only 0 and 1 are legal")
    digests = [files["x"][1], files["y"][1]]
    cases: list[str | None] | None = None
    if meta.is_file():
        sheet, wrong = read_csv(meta, ("wsi",))
        problems += wrong
        if not wrong:
            cases = list(sheet.cells["wsi"])
            digests.append(file_digest(meta))
            if len(cases) != len(labels):
                problems.append(
                    f"{meta} has {len(cases)} rows, {found['y']} has {len(labels)} labels"
                )
    return _Pair(part, files["x"][0], labels, cases, digests)


@dataclass
class _Hdf5Patches:
    """Function from index to pixels in a few HDF5 files; reads of all threads are serialised."""

    paths: list[Path]
    numbers: NDArray[np.int64]  # (n, 2): file, row
    lock: Lock = field(default_factory=Lock)

    @cached_property
    def sets(self) -> list[h5py.Dataset]:
        return [h5py.File(path)["x"] for path in self.paths]

    def __call__(self, index: int) -> RgbPatch:
        file, row = self.numbers[index].tolist()
        try:
            with self.lock:
                return np.asarray(self.sets[file][row], np.uint8)
        except Exception as error:  # h5py raises any type of error on a damaged file
            raise UserError(
                f"{self.paths[file]}: patch {row} cannot be read ({first_line(error)}); download "
                "it again, or delete this file if it is in a scratch folder."
            ) from None


def _unpacked(path: Path, scratch: Path) -> tuple[Path, str]:
    """Return the uncompressed HDF5 of a file, and the SHA-256 of the file as given."""
    content = file_digest(path)
    if path.suffix != ".gz":
        return path, content
    plain = scratch / f"{content}.h5"
    if not plain.exists():
        unpack(path, plain)
    return plain, content


def _plain_or_gzipped(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None
