"""Between the stages: augmented views, stores of the same tiles changed at random before encoding.

A view is a product of its own: it has the rows of the slide's plain store, in the same order, under
a key of its own. Only training reads views. In the results they lie in a folder beside the slides'
stores, so that whoever lists these meets no view.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from her2.storage.cache import SUFFIXES
from her2.storage.features import read_coords

FOLDER = "views"
"""Folder of the links to views, in the folder of an encoder's features."""


def view_path(features: Path, slide_id: str, view: int) -> Path:
    """Return the path of a slide's view (from 1) in the folder of an encoder's features."""
    return features / FOLDER / f"{slide_id}.view{view}{SUFFIXES['features']}"


def view_links(features: Path, slide_id: str) -> list[Path]:
    """Return the paths of all views that a slide has in the folder of an encoder's features."""
    start, end = f"{slide_id}.view", SUFFIXES["features"]
    return sorted(
        path
        for path in (features / FOLDER).glob(f"*{end}")
        if path.name.startswith(start) and path.name[len(start) : -len(end)].isdecimal()
    )


def is_view(attributes: Mapping[str, Any]) -> bool:
    """Return whether a store is an augmented view, by its attributes."""
    return "view" in (attributes.get("identity") or {})


def same_tiles(
    first: tuple[Path, Mapping[str, Any]], second: tuple[Path, Mapping[str, Any]]
) -> bool:
    """Return whether two stores of one slide, with their attributes, have the same rows.

    Their keys do not tell which tiles could be read.
    """
    (one, of_one), (other, of_other) = first, second
    if of_one["tiles"] != of_other["tiles"]:
        return False
    if not of_one["failed_tiles"] and not of_other["failed_tiles"]:
        return bool(of_one["identity"]["tiles"] == of_other["identity"]["tiles"])
    return bool(np.array_equal(read_coords(one), read_coords(other)))
