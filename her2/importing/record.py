"""What `import.json` says of an import."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import her2
from her2.core.files import file_digest
from her2.importing import words
from her2.importing.found import Found, Source
from her2.importing.opening import Opening


def asked_record(
    source: Source, folder: Path, options: Mapping[str, Any], found: Found
) -> dict[str, Any]:
    """Return what it says of what was asked for, read and decided."""
    return {
        "her2": her2.__version__,
        "source": source.name,
        "folder": str(folder),
        # The number of threads changes nothing of what is written.
        "options": {name: _plain(one) for name, one in options.items() if name != "threads"},
        "inputs": [*_inputs(found.inputs, folder)],
        "rules": list(found.rules),
        "conflicts": list(found.conflicts),
        "left_out": [asdict(one) for one in found.left_out],
    }


def opened_record(found: Found, opened: Sequence[Opening]) -> dict[str, Any]:
    """Return what it says of the slides once they have been opened."""
    kept = {one.slide_id for one in found.slides}
    return {
        "conflicts": list(found.conflicts),
        "left_out": [asdict(one) for one in found.left_out],
        "n_slides": len(found.slides),
        "n_patients": len({one.patient_id for one in found.slides}),
        "labels": words.label_counts(found.slides),
        "slides": {
            one.slide_id: {
                "vendor": one.vendor,
                "reader": one.reader,
                "size_px": [one.width_px, one.height_px],
                "levels": one.levels,
                "mpp": one.mpp,
                "mpp_source": one.mpp_source,
                "file_mpp": one.file_mpp,
                "bytes": one.size_bytes,
                "excluded": one.excluded,
                "brown": one.brown,
            }
            for one in opened
            if one.slide_id in kept
        },
    }


def _inputs(paths: Sequence[Path], folder: Path) -> Iterator[dict[str, Any]]:
    for path in dict.fromkeys(paths):
        inside = path.is_relative_to(folder) and path != folder
        yield {
            "path": str(path.relative_to(folder) if inside else path),
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
