"""Outlines of other programs -> annotation files of the manifest: GeoJSON as QuPath writes it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from her2.core.errors import problem_list
from her2.core.files import canonical_json, file_digest, write_json, write_text
from her2.core.reading import path_problem, read_json

Rings = Sequence[Sequence[tuple[float, float]]]
"""Closed outlines, (x, y) in level-0 px; the last point is the first."""

_RECORD = "written.json"


def publish_outlines(outlines: Mapping[str, Rings], folder: Path, *, name: str) -> dict[str, Path]:
    """Write a file of outlines for each slide; return slide id -> file.

    Args:
        outlines: slide id -> its outlines.
        folder: where the files go; made if it is not there.
        name: class of the outlines.

    Raises:
        UserError: a file that would be written over was made or changed by others; nothing has
            been written then.
    """
    record = folder / _RECORD
    known: dict[str, str] = {} if path_problem(record) else read_json(record)
    files = {one: folder / f"{one}.geojson" for one in outlines}
    texts = {one: _geojson(rings, name) for one, rings in outlines.items()}
    stale = {
        one
        for one, path in files.items()
        if not path.exists() or path.read_bytes() != texts[one].encode()
    }
    if changed := [
        one for one in stale if files[one].exists() and file_digest(files[one]) != known.get(one)
    ]:
        raise problem_list(
            f"{folder}: these outlines were changed since they were imported; move them away, and "
            "name them in the manifest's column 'annotation' afterwards",
            (files[one].name for one in sorted(changed)),
        )
    for one in sorted(stale):
        write_text(files[one], texts[one])
    if stale:
        write_json(record, known | {one: file_digest(files[one]) for one in files})
    return files


def _geojson(rings: Rings, name: str) -> str:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for ring in rings
    ]
    return canonical_json({"type": "FeatureCollection", "features": features}) + "\n"
