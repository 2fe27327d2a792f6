"""`her2 doctor`: space and inodes where cache and results go, and whether they can be written."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from her2.cli.doctor.base import Check, Finding, Situation
from her2.cli.doctor.weights import downloads
from her2.core.errors import UserError
from her2.core.reading import write_problem

FULL_GB, LITTLE_GB = 1.0, 20.0
FULL_INODES, LITTLE_INODES = 1_000, 100_000
LARGEST_GB = 6.0
"""Room for the largest encoder of the catalogue."""


def find(situation: Situation) -> Iterator[Finding]:
    """Yield space and inodes of both folders, and whether they share a filesystem.

    Also of the folders that weights have yet to be fetched into.
    """
    devices = {}
    for name in ("cache", "results"):
        try:
            folder = getattr(situation, name)
        except UserError as error:
            yield Finding("bad", str(error), "correct it, or unset it")
            continue
        if problem := write_problem(folder):
            yield Finding(
                "bad", f"{name} {folder}: {problem}", f"correct it, or name another `{name}`"
            )
            continue
        place = _existing(folder)
        devices[name] = place.stat().st_dev
        yield _room(name, folder, place)
    if len(set(devices.values())) > 1:
        yield Finding(
            "note",
            "cache and results are on different filesystems, so products are copied, not linked",
            "put both on one filesystem if space is short",
        )
    yield from _for_downloads(situation)


def _for_downloads(situation: Situation) -> Iterator[Finding]:
    """Yield space and inodes where published weights go; they only matter until they are there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = list(downloads(situation))
    for folder in dict.fromkeys(one.folder for one in found):
        coming = [one.what for one in found if one.folder == folder and not one.here]
        variable = "HF_HOME" if folder == Path(HF_HUB_CACHE) else "TORCH_HOME"
        if not coming:
            continue
        mend = f"correct it, or set {variable} to a folder with room"
        if problem := write_problem(folder):
            yield Finding("bad", f"weights {folder}: {problem}", mend)
            continue
        one = _room("weights", folder, _existing(folder))
        yield replace(one, mend=mend) if one.mend else one


def _room(name: str, folder: Path, place: Path) -> Finding:
    state = os.statvfs(place)
    free = state.f_bavail * state.f_frsize / 1e9
    counted = state.f_files > 0  # some filesystems make inodes as they need them
    inodes = f", {state.f_favail:,} inodes" if counted else ""
    text = f"{name} {folder}: {free:,.1f} GB free{inodes}"
    if free < FULL_GB or (counted and state.f_favail < FULL_INODES):
        return Finding("bad", text, "free some, e.g. by `her2 cache prune`, or name another folder")
    if free < LITTLE_GB or (counted and state.f_favail < LITTLE_INODES):
        if name == "weights":
            least = free < LARGEST_GB
            return Finding("note" if least else "ok", text, "free some" if least else "")
        return Finding(
            "note", f"{text}; 1,000 slides of 10,000 tiles take 20 GB for 1,024 features",
            "make room before a large cohort",
        )  # fmt: skip
    return Finding("ok", text)


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


CHECK = Check("disk", 50, find)
