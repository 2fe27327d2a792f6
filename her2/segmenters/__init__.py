"""Segmenters, one file each: published networks that find the tissue or the artefacts of a slide.

`tiling.segmenter` names a file of `tissue/`, and `tiling.artefact_segmenter` one of `artefacts/`;
each ends with `SEGMENTER = ...`. The config asks for them in processes that must stay light, so a
file imports torch and the network's library inside `build`.
"""

import pkgutil
from functools import cache
from importlib import import_module

from her2.filters.base import ClassFilter
from her2.segmenters.base import ArtefactSegmenter, Segmenter, TissueSegmenter


def _names(folder: str) -> tuple[str, ...]:
    places = [f"{place}/{folder}" for place in __path__]
    return tuple(sorted(module.name for module in pkgutil.iter_modules(places)))


NAMES = _names("tissue")
"""The legal names of tissue segmenters."""
ARTEFACT_NAMES = _names("artefacts")
"""The legal names of artefact segmenters."""


@cache
def segmenter(name: str) -> TissueSegmenter:
    """Return the tissue segmenter of that name, which is one of `NAMES`."""
    found = _declared(f"tissue.{name}")
    assert isinstance(found, TissueSegmenter), f"tissue/{name}.py: finds no tissue"
    return found


@cache
def artefact_segmenter(name: str) -> ArtefactSegmenter:
    """Return the artefact segmenter of that name, which is one of `ARTEFACT_NAMES`."""
    found = _declared(f"artefacts.{name}")
    assert isinstance(found, ArtefactSegmenter), f"artefacts/{name}.py: finds no artefacts"
    return found


def _declared(module: str) -> Segmenter:
    found = import_module(f"{__name__}.{module}").SEGMENTER
    assert isinstance(found, Segmenter), f"her2/segmenters/{module}: SEGMENTER is no Segmenter"
    name = module.rpartition(".")[2]
    assert found.name == name, f"her2/segmenters/{module}: is named {found.name}"
    return found


def chosen(tiling: object) -> tuple[Segmenter, ...]:
    """Return the segmenters that a config's `tiling:` names, that of tissue first."""
    found = []
    for kind, load in ((TissueSegmenter, segmenter), (ArtefactSegmenter, artefact_segmenter)):
        name = getattr(tiling, kind.key)
        if name is not None:
            found.append(load(name))
    return tuple(found)


def class_filters(tiling: object) -> tuple[ClassFilter, ...]:
    """Return the filters of the artefact segmenter that a config's `tiling:` names, if any."""
    return tuple(
        filter_
        for one in chosen(tiling)
        if isinstance(one, ArtefactSegmenter)
        for filter_ in one.artefacts
    )
